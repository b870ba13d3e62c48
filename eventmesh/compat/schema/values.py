"""JSON values: of which type they are, and which are equal."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

TYPES = ("null", "boolean", "integer", "fraction", "string", "array", "object")
"""The types of values; a fraction is a number that is not integral."""
_OF_TYPE = {"number": ("integer", "fraction")}


def types_of(value: Any) -> frozenset[str]:
    """The types that a `type` keyword allows."""
    names = [value] if isinstance(value, str) else value
    return frozenset(part for name in names for part in _OF_TYPE.get(name, (name,)))


def type_of(value: Any) -> str:
    """The type of a JSON value, of `TYPES`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "fraction"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and is not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return (type(one) is type(other) and one == other) or _numbers_equal(one, other)


def _numbers_equal(one: Any, other: Any) -> bool:
    return isinstance(one, int | float) and isinstance(other, int | float) and one == other


def exact(value: int | float) -> Fraction:
    """The number that its decimal digits say, as JSON means it."""
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))
