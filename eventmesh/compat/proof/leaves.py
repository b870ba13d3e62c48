"""Decides for numbers and strings whether one alternative is within another.

A proof goes down through objects and lists until it reaches numbers and strings. There the bounds
decide: integers from 1 to 5 are within those below 6, and the multiples of 6 within those of 3.
Strings are compared by length, format and pattern; patterns as regular languages (see `regular`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import Any

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.schema import formats
from eventmesh.compat.schema.alternative import Alternative
from eventmesh.compat.schema.regular import Irregular, example
from eventmesh.compat.schema.values import exact


def number_within(alternative: Alternative, other: Alternative, kind: str) -> bool:
    """Whether the numbers of one alternative (integers or fractions) are all of the other."""
    low, high = _lower(alternative, kind), _upper(alternative, kind)
    if other.low is not None:
        if low is None or low[0] < other.low:
            return False
        if low[0] == other.low and other.low_open and not low[1]:
            return False
    if other.high is not None:
        if high is None or high[0] > other.high:
            return False
        if high[0] == other.high and other.high_open and not high[1]:
            return False
    mine = [exact(step) for step in alternative.multiples]
    whole = _common_multiple([*mine, Fraction(1)] if kind == "integer" else mine)
    for step in other.multiples:
        if whole is None or whole % exact(step) != 0:
            return False
    return all(step in alternative.no_multiples for step in other.no_multiples)


def _lower(alternative: Alternative, kind: str) -> tuple[Any, bool] | None:
    if alternative.low is None:
        return None
    if kind == "integer":
        least = -(-exact(alternative.low) // 1)
        return (least + 1 if alternative.low_open and least == alternative.low else least), False
    return alternative.low, alternative.low_open


def _upper(alternative: Alternative, kind: str) -> tuple[Any, bool] | None:
    if alternative.high is None:
        return None
    if kind == "integer":
        most = exact(alternative.high) // 1
        return (most - 1 if alternative.high_open and most == alternative.high else most), False
    return alternative.high, alternative.high_open


def _common_multiple(steps: Sequence[Fraction]) -> Fraction | None:
    """The step of the numbers that are multiples of all these; None for all numbers."""
    if not steps:
        return None
    return Fraction(lcm(*(s.numerator for s in steps)), gcd(*(s.denominator for s in steps)))


def text_within(alternative: Alternative, other: Alternative, budget: StepBudget) -> bool:
    """Whether the texts of one alternative are all of the other."""
    if alternative.min_length < other.min_length and not no_text(
        alternative, [], budget, max_length=other.min_length - 1
    ):
        return False
    if other.max_length is not None and (
        alternative.max_length is None or alternative.max_length > other.max_length
    ) and not no_text(alternative, [], budget, min_length=other.max_length + 1):  # fmt: skip
        return False
    for name in other.formats:
        if not any(formats.includes(name, mine) for mine in alternative.formats):
            return False
    for name in other.no_formats:
        if not any(formats.includes(mine, name) for mine in alternative.no_formats):
            return False
    for pattern in other.patterns:
        if pattern not in alternative.patterns and not no_text(alternative, [pattern], budget):
            return False
    return all(
        pattern in alternative.no_patterns
        or _empty(
            [*alternative.patterns, pattern],
            alternative.no_patterns,
            alternative.min_length,
            alternative.max_length,
            budget,
        )
        for pattern in other.no_patterns
    )


def no_text(
    alternative: Alternative,
    missing: Sequence[str],
    budget: StepBudget,
    *,
    min_length: int | None = None,
    max_length: int | None = None,
) -> bool:
    """Whether no text of the alternative has such a length and matches none of `missing`."""
    if not alternative.patterns and not missing:
        return False
    least = (
        alternative.min_length if min_length is None else max(min_length, alternative.min_length)
    )
    most = alternative.max_length
    if max_length is not None:
        most = max_length if most is None else min(most, max_length)
    return _empty(alternative.patterns, [*alternative.no_patterns, *missing], least, most, budget)


def spelled(values: Sequence[Any]) -> str:
    """A pattern of these texts and no others."""
    texts = (re.sub(r"([^\w\s])", r"\\\1", value) for value in values if isinstance(value, str))
    return f"^(?:{'|'.join(texts)})$"


def _empty(
    patterns: Sequence[str],
    no_patterns: Sequence[str],
    least: int,
    most: int | None,
    budget: StepBudget,
) -> bool:
    """Whether no text is so, whichever way an engine counts digits and letters."""
    try:
        return all(
            example(
                patterns,
                no_patterns,
                min_length=least,
                max_length=most,
                unicode=unicode,
                budget=budget,
            )
            is None
            for unicode in (False, True)
        )
    except Irregular:
        return False


def never_both(one: str, other: str, budget: StepBudget) -> bool:
    """Whether no text matches both patterns."""
    return _empty([one, other], [], 0, None, budget)


def implies(one: str, other: str, budget: StepBudget) -> bool:
    """Whether every text that matches the one pattern matches the other."""
    return one == other or _empty([one], [other], 0, None, budget)
