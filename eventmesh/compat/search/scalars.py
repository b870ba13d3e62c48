"""Generates strings and numbers on the bounds of the writer's schema and of the reader's.

If the reader's maximum is 5, the values 5 and 6 tell whether the writer exceeds it. So each bound,
multiple, length, pattern and format of both schemas contributes the values at it and next to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from eventmesh.compat.budget import StepBudget
from eventmesh.compat.schema import formats
from eventmesh.compat.schema.alternative import Alternative
from eventmesh.compat.schema.members import in_bounds
from eventmesh.compat.schema.regular import Irregular, examples
from eventmesh.compat.schema.values import exact

MAX_TEXT = 20_000
"""The longest text that is made up, in characters."""

_TEXTS = (
    "", "a", "A", "0", "1", "é", "😀", "a b", "-1", "1.5", "true", "null", "x-y_z", "\n", "ab",
    "aa", "abc", "2026-01-31", "2026-01-31T12:30:00Z", "12:30:00", "P1D", "a@example.com",
    "12345678-1234-5678-1234-567812345678", "192.0.2.1", "https://example.com/", "NaN",
)  # fmt: skip
_NUMBERS: tuple[int | float, ...] = (
    0, 1, -1, 2, 3, 10, 100, 1.5, 0.1, 0.01, -0.5, 1e-7, 2**31, 2**53 + 1, 2**63, 10**20, -(10**20),
    1e308,
)  # fmt: skip


def texts(
    alternative: Alternative,
    counterparts: Sequence[Alternative],
    budget: StepBudget,
    most: int = 40,
) -> Iterator[str]:
    """Texts that the alternative may accept, first those that a counterpart may reject."""
    lengths = {alternative.min_length, alternative.min_length + 1}
    lengths |= {alternative.max_length} if alternative.max_length is not None else set()
    for counterpart in counterparts:
        yield from (value for value in counterpart.values or () if isinstance(value, str))
        lengths |= {counterpart.min_length - 1, counterpart.min_length}
        if counterpart.max_length is not None:
            lengths |= {counterpart.max_length, counterpart.max_length + 1}
    yield from _formatted(alternative, counterparts)
    if (
        alternative.patterns
        or alternative.no_patterns
        or any(r.patterns or r.no_patterns for r in counterparts)
    ):
        yield from _matching(alternative, counterparts, lengths, most, budget)
    if not alternative.patterns:
        for length in sorted(lengths):
            if 0 <= length <= MAX_TEXT:
                yield "a" * length
                yield "😀" * length
        yield from _TEXTS
        for sample in (s for name in alternative.formats for s in formats.samples(name)):
            for length in sorted(lengths):  # many formats take zeros or spaces at an end
                if len(sample) < length <= MAX_TEXT:
                    yield sample + "0" * (length - len(sample))


def _formatted(alternative: Alternative, counterparts: Sequence[Alternative]) -> Iterator[str]:
    names = [
        *alternative.formats,
        *(name for counterpart in counterparts for name in counterpart.formats),
    ]
    names += [
        name for counterpart in [alternative, *counterparts] for name in counterpart.no_formats
    ]
    for name in dict.fromkeys(names):
        yield from formats.samples(name)


def _matching(
    alternative: Alternative,
    counterparts: Sequence[Alternative],
    lengths: set[int],
    most: int,
    budget: StepBudget,
) -> Iterator[str]:
    bounds: dict[str, Any] = {
        "min_length": alternative.min_length,
        "max_length": alternative.max_length,
        "budget": budget,
    }
    theirs = [(counterpart.patterns, counterpart.no_patterns) for counterpart in counterparts]
    for patterns, no_patterns in theirs:
        for pattern in patterns:
            # What a look-around asks about is mostly spelled out in it.
            yield from re.findall(r"\w+", pattern)[:8] if "(?" in pattern else ()
            yield from _one(alternative.patterns, [*alternative.no_patterns, pattern], bounds)
        for pattern in no_patterns:
            yield from _one([*alternative.patterns, pattern], alternative.no_patterns, bounds)
        yield from _one(
            [*alternative.patterns, *patterns], [*alternative.no_patterns, *no_patterns], bounds
        )
    try:
        for count, text in enumerate(
            examples(alternative.patterns, alternative.no_patterns, **bounds), start=1
        ):
            yield text
            if count >= most:
                break
    except Irregular:
        for pattern in alternative.patterns:
            yield pattern.strip("^$")
    for length in sorted(lengths):
        if 0 <= length <= 200:
            exact = {**bounds, "min_length": length, "max_length": length}
            yield from _one(alternative.patterns, alternative.no_patterns, exact)


def _one(
    patterns: Sequence[str], no_patterns: Sequence[str], bounds: dict[str, Any]
) -> Iterator[str]:
    for unicode in (False, True):
        with suppress(Irregular):
            yield from islice(examples(patterns, no_patterns, unicode=unicode, **bounds), 4)


def numbers(alternative: Alternative, counterparts: Sequence[Alternative]) -> Iterator[int | float]:
    """Numbers within the alternative's bounds, likewise."""
    points: list[int | float] = []
    for one in [alternative, *counterparts]:
        points += [bound for bound in (one.low, one.high) if bound is not None]
        points += [value for value in one.values or () if type(value) in (int, float)]
        points += [value for value in one.excluded if type(value) in (int, float)]
    steps = [
        *alternative.multiples,
        *(step for counterpart in counterparts for step in counterpart.multiples),
    ]
    steps += [step for one in [alternative, *counterparts] for step in one.no_multiples]
    candidates: list[int | float] = []
    for point in points:
        candidates += [point, point + 1, point - 1]
        if abs(point) < 2**1000:  # a float may be as large
            candidates += [point + 0.5, point - 0.5, point * (1 + 1e-9), point * (1 - 1e-9)]
        candidates += [value for step in alternative.multiples for value in _near(point, step)]
    for step in steps:
        candidates += [step, -step, *(step * other for other in steps), 2 * step, 3 * step]
    seen = set()
    for value in [*candidates, *_NUMBERS, *(n for s in alternative.multiples for n in _near(0, s))]:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
            # The same number, as writers of integers write it. Larger ones stay floats, because
            # jsonschema-rs compares large integers inexactly with bounds that are floats.
            value = int(value)
        mark = repr(value)
        if mark not in seen and _is_finite(value) and in_bounds(alternative, value):
            seen.add(mark)
            yield value


def _is_finite(value: int | float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _near(point: int | float, step: int | float) -> Iterator[int | float]:
    """Multiples of the step around a point."""
    width = exact(step)
    below = exact(point) // width
    for count in (below - 1, below, below + 1, below + 2):
        value = width * count
        yield int(value) if value.denominator == 1 else float(value)
