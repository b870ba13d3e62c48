"""One alternative of a schema: all its constraints in one flat record.

A schema such as `{"type": "string", "anyOf": [{"maxLength": 3}, {"pattern": "^x"}]}` is hard to
reason about as it stands. Written as alternatives it becomes "a string of at most 3 characters" or
"a string that matches ^x", each with nothing but plain bounds. Proofs compare such records field by
field, and the search reads from them which values to try.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventmesh.compat.schema.reading import Schema
from eventmesh.compat.schema.values import TYPES, same, type_of


@dataclass(frozen=True, slots=True)
class Others:
    """What additional names are held to: those beside `names` that match none of `patterns`."""

    names: frozenset[str]
    patterns: tuple[str, ...]
    schema: Schema


@dataclass(frozen=True, slots=True)
class Contains:
    """How many entries of a list must be of a schema."""

    schema: Schema
    least: int
    most: int | None


@dataclass(slots=True)
class Alternative:
    """One alternative: every constraint holds. Bounds are the widest that their keywords allow."""

    types: frozenset[str] = frozenset(TYPES)
    values: tuple[Any, ...] | None = None
    excluded: tuple[Any, ...] = ()
    low: int | float | None = None
    low_open: bool = False
    high: int | float | None = None
    high_open: bool = False
    multiples: tuple[int | float, ...] = ()
    no_multiples: tuple[int | float, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[str, ...] = ()
    no_patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    no_formats: tuple[str, ...] = ()
    min_items: int = 0
    max_items: int | None = None
    unique: bool = False
    lists: tuple[tuple[tuple[Schema, ...], Schema], ...] = ()
    """For each schema of lists: those of its first entries, and that of all others."""
    contains: tuple[Contains, ...] = ()
    min_properties: int = 0
    max_properties: int | None = None
    required: frozenset[str] = frozenset()
    properties: Mapping[str, tuple[Schema, ...]] = field(default_factory=dict)
    by_pattern: tuple[tuple[str, Schema], ...] = ()
    others: tuple[Others, ...] = ()
    names: tuple[Schema, ...] = ()
    exact: bool = True

    def of(self, name: str, matches: Any) -> tuple[Schema, ...]:
        """All schemas that the value of this name is held to."""
        found = list(self.properties.get(name, ()))
        found += [schema for pattern, schema in self.by_pattern if matches(pattern, name)]
        for others in self.others:
            if name not in others.names and not any(matches(p, name) for p in others.patterns):
                found.append(others.schema)
        return tuple(found)

    def at(self, place: int) -> tuple[Schema, ...]:
        """All schemas that the entry of a list at this place is held to."""
        return tuple(first[place] if place < len(first) else rest for first, rest in self.lists)


def closed(alternative: Alternative) -> Alternative:
    """The alternative with the types that its own bounds leave."""
    types = set(alternative.types)
    if alternative.values is not None:
        excluded = alternative.excluded
        alternative.values = tuple(
            value
            for value in alternative.values
            if type_of(value) in types and not any(same(value, other) for other in excluded)
        )
        types &= {type_of(value) for value in alternative.values}
    if alternative.max_length is not None and alternative.max_length < alternative.min_length:
        types.discard("string")
    if alternative.max_items is not None and alternative.max_items < alternative.min_items:
        types.discard("array")
    least = max(alternative.min_properties, len(alternative.required))
    if alternative.max_properties is not None and alternative.max_properties < least:
        types.discard("object")
    if any(False in alternative.properties.get(name, ()) for name in alternative.required):
        types.discard("object")
    if alternative.low is not None and alternative.high is not None:
        empty = alternative.low > alternative.high or (
            alternative.low == alternative.high and (alternative.low_open or alternative.high_open)
        )
        if empty:
            types -= {"integer", "fraction"}
    if {"integer", "fraction"} & types and 1 in alternative.no_multiples:
        types.discard("integer")
    if any(isinstance(step, int) or float(step).is_integer() for step in alternative.multiples):
        types.discard("fraction")
    alternative.types = frozenset(types)
    return alternative


def excludes(one: Alternative, other: Alternative) -> bool:
    """Whether no object is of both, as far as required fields tell: one of them is a tag with
    other values, or may not be there."""
    for name in sorted(other.required & one.properties.keys()):
        theirs, mine = _tags(other.properties.get(name, ())), _tags(one.properties[name])
        if (
            mine is not None
            and theirs is not None
            and not any(same(tag, value) for tag in mine for value in theirs)
        ):
            return True
    return _forbids(one, other.required) or _forbids(other, one.required)


def _forbids(alternative: Alternative, names: frozenset[str]) -> bool:
    """Whether one of these names may not be a field."""
    closed_by = [others for others in alternative.others if others.schema is False]
    return any(not others.patterns and not names <= others.names for others in closed_by)


def _tags(schemas: Sequence[Schema]) -> Sequence[Any] | None:
    for schema in schemas:
        if isinstance(schema, dict) and "const" in schema:
            return [schema["const"]]
        if isinstance(schema, dict) and "enum" in schema:
            return schema["enum"]  # type: ignore[no-any-return]
    return None
