"""Which values one alternative of a schema has, as far as its plain bounds tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventmesh.compat.schema import formats
from eventmesh.compat.schema.alternative import Alternative
from eventmesh.compat.schema.validity import matches
from eventmesh.compat.schema.values import exact, same, type_of


def finite(alternative: Alternative) -> Sequence[Any] | None:
    """All values of an alternative, when they are few."""
    if alternative.values is not None:
        return [
            value
            for value in alternative.values
            if type_of(value) in alternative.types and fits(alternative, value)
        ]
    values: list[Any] = []
    for kind in sorted(alternative.types):
        if kind == "null":
            values.append(None)
        elif kind == "boolean":
            values += [False, True]
        elif kind == "integer" and alternative.low is not None and alternative.high is not None:
            if alternative.high - alternative.low > 50:
                return None
            values += range(int(alternative.low // 1), int(alternative.high // 1) + 2)
        else:
            return None
    return [
        value
        for value in values
        if not any(same(value, other) for other in alternative.excluded)
        and fits(alternative, value)
    ]


def fits(alternative: Alternative, value: Any) -> bool:
    """Whether a text or a number keeps the bounds of an alternative; of other values, true."""
    if isinstance(value, str):
        return (
            alternative.min_length <= len(value)
            and (alternative.max_length is None or len(value) <= alternative.max_length)
            and all(matches(pattern, value) for pattern in alternative.patterns)
            and not any(matches(pattern, value) for pattern in alternative.no_patterns)
            and all(formats.is_of(value, name) for name in alternative.formats)
        )
    return type_of(value) not in ("integer", "fraction") or in_bounds(alternative, value)


def finite_of(alternatives: Sequence[Alternative]) -> list[Any] | None:
    """All values of these alternatives, each once, when they are few."""
    values: list[Any] = []
    for alternative in alternatives:
        some = finite(alternative)
        if some is None:
            return None
        values += [value for value in some if not any(same(value, known) for known in values)]
    return values


def in_bounds(alternative: Alternative, value: int | float) -> bool:
    """Whether a number is within the bounds, and a multiple of what it must be one of."""
    if alternative.low is not None and (
        value < alternative.low or (alternative.low_open and value == alternative.low)
    ):
        return False
    if alternative.high is not None and (
        value > alternative.high or (alternative.high_open and value == alternative.high)
    ):
        return False
    number = exact(value)
    return all(number % exact(step) == 0 for step in alternative.multiples) and not any(
        number % exact(step) == 0 for step in alternative.no_multiples
    )
