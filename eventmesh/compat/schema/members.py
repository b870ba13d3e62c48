"""Which values one alternative of a schema has, as far as its plain bounds tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventmesh.compat.schema import formats
from eventmesh.compat.schema.flat import Flat
from eventmesh.compat.schema.validity import matches
from eventmesh.compat.schema.values import exact, same, type_of


def finite(flat: Flat) -> Sequence[Any] | None:
    """All values of an alternative, when they are few."""
    if flat.values is not None:
        return [
            value for value in flat.values if type_of(value) in flat.types and fits(flat, value)
        ]
    values: list[Any] = []
    for kind in sorted(flat.types):
        if kind == "null":
            values.append(None)
        elif kind == "boolean":
            values += [False, True]
        elif kind == "integer" and flat.low is not None and flat.high is not None:
            if flat.high - flat.low > 50:
                return None
            values += range(int(flat.low // 1), int(flat.high // 1) + 2)
        else:
            return None
    return [
        value
        for value in values
        if not any(same(value, barred) for barred in flat.barred) and fits(flat, value)
    ]


def fits(flat: Flat, value: Any) -> bool:
    """Whether a text or a number keeps the bounds of an alternative; of other values, true."""
    if isinstance(value, str):
        return (
            flat.min_length <= len(value)
            and (flat.max_length is None or len(value) <= flat.max_length)
            and all(matches(pattern, value) for pattern in flat.patterns)
            and not any(matches(pattern, value) for pattern in flat.no_patterns)
            and all(formats.is_of(value, name) for name in flat.formats)
        )
    return type_of(value) not in ("integer", "fraction") or in_bounds(flat, value)


def finite_of(flats: Sequence[Flat]) -> list[Any] | None:
    """All values of these alternatives, each once, when they are few."""
    values: list[Any] = []
    for flat in flats:
        some = finite(flat)
        if some is None:
            return None
        values += [value for value in some if not any(same(value, known) for known in values)]
    return values


def in_bounds(flat: Flat, value: int | float) -> bool:
    """Whether a number is within the bounds, and a multiple of what it must be one of."""
    if flat.low is not None and (value < flat.low or (flat.low_open and value == flat.low)):
        return False
    if flat.high is not None and (value > flat.high or (flat.high_open and value == flat.high)):
        return False
    number = exact(value)
    return all(number % exact(step) == 0 for step in flat.multiples) and not any(
        number % exact(step) == 0 for step in flat.no_multiples
    )
