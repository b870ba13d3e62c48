"""A schema as alternatives, each a plain conjunction: what documents are made of, and proofs too.

`alternatives` resolves references, allOf, anyOf, oneOf, conditions, dependencies and negations. An
alternative may say less than the schema does (`exact` is then false), and never more: together they
accept at least what the schema accepts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from eventmesh.contracts.compat.reading import Schema, Unproved

MAX_ALTERNATIVES = 96
MAX_STEPS = 4_000
TYPES = ("null", "boolean", "integer", "fraction", "string", "array", "object")
"""The types of values; a fraction is a number that is not integral."""

_OF_TYPE = {"number": ("integer", "fraction")}
_KEYWORDS_OF = {
    "minimum": ("integer", "fraction"), "maximum": ("integer", "fraction"),
    "exclusiveMinimum": ("integer", "fraction"), "exclusiveMaximum": ("integer", "fraction"),
    "multipleOf": ("integer", "fraction"),
    "minLength": ("string",), "maxLength": ("string",), "pattern": ("string",),
    "format": ("string",),
    "minItems": ("array",), "maxItems": ("array",), "items": ("array",),
    "prefixItems": ("array",), "uniqueItems": ("array",), "contains": ("array",),
    "minProperties": ("object",), "maxProperties": ("object",), "required": ("object",),
    "properties": ("object",), "patternProperties": ("object",),
    "additionalProperties": ("object",), "propertyNames": ("object",),
}  # fmt: skip


class TooMany(Unproved):
    """The schema has more alternatives than are looked at."""


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
class Flat:
    """One alternative: every constraint holds. Bounds are the widest that their keywords allow."""

    types: frozenset[str] = frozenset(TYPES)
    values: tuple[Any, ...] | None = None
    barred: tuple[Any, ...] = ()
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


class Flattener:
    """Flattens schemas of one document, whose definitions it knows."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self.definitions = definitions
        self._steps = 0

    def alternatives(self, schemas: Sequence[Schema]) -> list[Flat]:
        """What it takes to be of all these schemas; none when that is impossible. TooMany."""
        found: list[Flat] = []
        self._steps = 0
        for flat in self._grow(Flat(), [(schema, True) for schema in schemas], frozenset()):
            if flat.types:
                found.append(flat)
                if len(found) > MAX_ALTERNATIVES:
                    raise TooMany("it has too many alternatives")
        return found

    def some(self, schemas: Sequence[Schema]) -> list[Flat]:
        """As many alternatives as are looked at, for making documents."""
        found: list[Flat] = []
        self._steps = 0
        with suppress(TooMany):
            for flat in self._grow(Flat(), [(schema, True) for schema in schemas], frozenset()):
                if flat.types:
                    found.append(flat)
                    if len(found) == MAX_ALTERNATIVES:
                        break
        return found

    def _grow(
        self, flat: Flat, ahead: list[tuple[Schema, bool]], seen: frozenset[str]
    ) -> Iterator[Flat]:
        """The alternatives of a conjunction of schemas and, where the flag is false, negations."""
        flat, ahead = copy(flat), list(ahead)
        while ahead:
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise TooMany("it has too many alternatives")
            if not flat.types:
                return
            schema, positive = ahead.pop(0)
            if isinstance(schema, bool):
                if schema is not positive:
                    return
                continue
            reference = schema.get("$ref")
            if isinstance(reference, str):
                if reference in seen:
                    flat.exact = False  # it is asked about itself: nothing is learnt
                    continue
                seen |= {reference}
                target = self.definitions[reference.removeprefix("#/$defs/")]
                ahead.insert(0, (target, positive))
                continue
            choices = _choices(schema) if positive else _negations(schema, flat)
            if choices is None:
                continue
            if positive:
                _narrow(flat, schema)
            for choice in choices[:-1] if len(choices) > 1 else []:
                yield from self._grow(flat, [*choice, *ahead], seen)
            if not choices:
                return
            ahead = [*choices[-1], *ahead]
        yield _closed(flat)


Choice = list[tuple[Schema, bool]]


def _choices(schema: Mapping[str, Any]) -> list[Choice]:
    """What else a schema asks for than its plain keywords: alternatives of conjunctions."""
    choices: list[Choice] = [[]]

    def split(further: list[Choice]) -> None:
        nonlocal choices
        if len(choices) * len(further) > MAX_ALTERNATIVES:
            raise TooMany("it has too many alternatives")
        choices = [[*one, *other] for one in choices for other in further]

    for part in schema.get("allOf", ()):
        split([[(part, True)]])
    if "not" in schema:
        split([[(schema["not"], False)]])
    if "anyOf" in schema:
        split([[(part, True)] for part in schema["anyOf"]])
    if "oneOf" in schema:
        split(_just_one(schema["oneOf"]))
    if "if" in schema:
        condition = schema["if"]
        split(
            [
                [(condition, True), (schema.get("then", True), True)],
                [(condition, False), (schema.get("else", True), True)],
            ]
        )
    for name, needed in schema.get("dependentRequired", {}).items():
        if needed:
            split([_absent(name), [({"required": [name, *needed]}, True)], _no_object()])
    for name, further in schema.get("dependentSchemas", {}).items():
        present: Choice = [({"required": [name], "type": "object"}, True), (further, True)]
        split([_absent(name), present, _no_object()])
    return choices


def _just_one(branches: Sequence[Schema]) -> list[Choice]:
    if disjoint(branches):
        return [[(branch, True)] for branch in branches]
    return [
        [(branch, number == place) for number, branch in enumerate(branches)]
        for place in range(len(branches))
    ]


def _absent(name: str) -> Choice:
    return [({"type": "object", "properties": {name: False}}, True)]


def _no_object() -> Choice:
    return [({"type": "object"}, False)]


def _negations(schema: Mapping[str, Any], flat: Flat) -> list[Choice] | None:
    """The ways not to be of a schema, one for each keyword; None when nothing is learnt."""
    choices: list[Choice] = []
    for keyword, value in schema.items():
        if keyword == "$defs" or (
            keyword in ("then", "else") or keyword in ("minContains", "maxContains")
        ):
            continue
        ways = _ways_to_fail(keyword, value, schema)
        if ways is None:
            flat.exact = False
            return None
        choices.extend(ways)
    return choices


def _ways_to_fail(keyword: str, value: Any, schema: Mapping[str, Any]) -> list[Choice] | None:
    if keyword in ("allOf",):
        return [[(part, False)] for part in value]
    if keyword == "anyOf":
        return [[(part, False) for part in value]]
    if keyword == "not":
        return [[(value, True)]]
    if keyword == "if":
        return [
            [(value, True), (schema.get("then", True), False)],
            [(value, False), (schema.get("else", True), False)],
        ]
    if keyword == "required":
        return [_absent(name) for name in value]
    if keyword == "properties":
        return [
            [({"type": "object", "required": [name]}, True),
             ({"type": "object", "properties": {name: {"not": part}}}, True)]
            for name, part in value.items() if part is not True
        ]  # fmt: skip
    if keyword in _SIMPLE_FAILURES:
        return [[({_FAILS: {keyword: value}}, True)]]
    return None


_FAILS = "x-fails"
_SIMPLE_FAILURES = {
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minLength", "maxLength", "pattern", "format", "minItems", "maxItems",
    "minProperties", "maxProperties",
}  # fmt: skip


def _narrow(flat: Flat, schema: Mapping[str, Any]) -> None:
    """Add the plain keywords of a schema to an alternative."""
    for keyword, value in schema.items():
        if keyword == _FAILS:
            for failing, bound in value.items():
                _narrow_by_failure(flat, failing, bound)
        elif keyword in _NARROW:
            _NARROW[keyword](flat, value, schema)
        elif keyword in ("unevaluatedItems", "unevaluatedProperties"):
            flat.exact = False


def _narrow_type(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    flat.types &= _types(value)


def _types(value: Any) -> frozenset[str]:
    names = [value] if isinstance(value, str) else value
    return frozenset(part for name in names for part in _OF_TYPE.get(name, (name,)))


def _narrow_values(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    if flat.values is None:
        flat.values = tuple(value)
    else:
        flat.values = tuple(one for one in flat.values if _among(one, value))


def _among(value: Any, values: Sequence[Any]) -> bool:
    return any(same(value, other) for other in values)


def _narrow_low(flat: Flat, value: Any, open_: bool) -> None:
    if flat.low is None or value > flat.low or (value == flat.low and open_):
        flat.low, flat.low_open = value, open_


def _narrow_high(flat: Flat, value: Any, open_: bool) -> None:
    if flat.high is None or value < flat.high or (value == flat.high and open_):
        flat.high, flat.high_open = value, open_


def _least(attribute: str) -> Any:
    def narrow(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
        setattr(flat, attribute, max(getattr(flat, attribute), int(value)))

    return narrow


def _most(attribute: str) -> Any:
    def narrow(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
        bound = getattr(flat, attribute)
        setattr(flat, attribute, int(value) if bound is None else min(bound, int(value)))

    return narrow


def _add(attribute: str) -> Any:
    def narrow(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
        setattr(flat, attribute, (*getattr(flat, attribute), value))

    return narrow


def _narrow_lists(flat: Flat, schema: Mapping[str, Any]) -> None:
    flat.lists = (*flat.lists, (tuple(schema.get("prefixItems", ())), schema.get("items", True)))


def _narrow_items(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    if "prefixItems" not in schema:
        _narrow_lists(flat, schema)


def _narrow_contains(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    contains = Contains(value, int(schema.get("minContains", 1)), schema.get("maxContains"))
    flat.contains = (*flat.contains, contains)


def _narrow_properties(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    merged = dict(flat.properties)
    for name, part in value.items():
        merged[name] = (*merged.get(name, ()), part)
    flat.properties = merged


def _narrow_by_pattern(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    flat.by_pattern = (*flat.by_pattern, *value.items())


def _narrow_others(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    names = frozenset(schema.get("properties", ()))
    patterns = tuple(schema.get("patternProperties", ()))
    flat.others = (*flat.others, Others(names, patterns, value))


def _narrow_required(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    flat.required |= frozenset(value)


def _narrow_unique(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    flat.unique = flat.unique or bool(value)


_NARROW = {
    "type": _narrow_type,
    "enum": _narrow_values,
    "const": lambda flat, value, schema: _narrow_values(flat, [value], schema),
    "minimum": lambda flat, value, schema: _narrow_low(flat, value, False),
    "exclusiveMinimum": lambda flat, value, schema: _narrow_low(flat, value, True),
    "maximum": lambda flat, value, schema: _narrow_high(flat, value, False),
    "exclusiveMaximum": lambda flat, value, schema: _narrow_high(flat, value, True),
    "multipleOf": _add("multiples"),
    "minLength": _least("min_length"),
    "maxLength": _most("max_length"),
    "pattern": _add("patterns"),
    "format": _add("formats"),
    "minItems": _least("min_items"),
    "maxItems": _most("max_items"),
    "uniqueItems": _narrow_unique,
    "items": _narrow_items,
    "prefixItems": lambda flat, value, schema: _narrow_lists(flat, schema),
    "contains": _narrow_contains,
    "minProperties": _least("min_properties"),
    "maxProperties": _most("max_properties"),
    "required": _narrow_required,
    "properties": _narrow_properties,
    "patternProperties": _narrow_by_pattern,
    "additionalProperties": _narrow_others,
    "propertyNames": _add("names"),
}


def _narrow_by_failure(flat: Flat, keyword: str, value: Any) -> None:
    """Narrow to what fails a single keyword."""
    if keyword == "type":
        flat.types -= _types(value)
        return
    if keyword in ("enum", "const"):
        flat.barred = (*flat.barred, *(value if keyword == "enum" else [value]))
        return
    flat.types &= frozenset(_KEYWORDS_OF[keyword])
    _FAILURES[keyword](flat, value)


def _above(attribute: str) -> Any:
    def narrow(flat: Flat, value: Any) -> None:
        setattr(flat, attribute, max(getattr(flat, attribute), int(value) + 1))

    return narrow


def _below(attribute: str) -> Any:
    def narrow(flat: Flat, value: Any) -> None:
        if value <= 0:
            flat.types = frozenset()
        bound = getattr(flat, attribute)
        most = int(value) - 1
        setattr(flat, attribute, most if bound is None else min(bound, most))

    return narrow


def _too(attribute: str) -> Any:
    def narrow(flat: Flat, value: Any) -> None:
        setattr(flat, attribute, (*getattr(flat, attribute), value))

    return narrow


_FAILURES = {
    "minimum": lambda flat, value: _narrow_high(flat, value, True),
    "exclusiveMinimum": lambda flat, value: _narrow_high(flat, value, False),
    "maximum": lambda flat, value: _narrow_low(flat, value, True),
    "exclusiveMaximum": lambda flat, value: _narrow_low(flat, value, False),
    "multipleOf": _too("no_multiples"),
    "minLength": _below("max_length"),
    "maxLength": _above("min_length"),
    "pattern": _too("no_patterns"),
    "format": _too("no_formats"),
    "minItems": _below("max_items"),
    "maxItems": _above("min_items"),
    "minProperties": _below("max_properties"),
    "maxProperties": _above("min_properties"),
}


def _closed(flat: Flat) -> Flat:
    """The alternative with the types that its own bounds leave."""
    types = set(flat.types)
    if flat.values is not None:
        flat.values = tuple(
            value for value in flat.values
            if type_of(value) in types and not any(same(value, other) for other in flat.barred)
        )  # fmt: skip
        types &= {type_of(value) for value in flat.values}
    if flat.max_length is not None and flat.max_length < flat.min_length:
        types.discard("string")
    if flat.max_items is not None and flat.max_items < flat.min_items:
        types.discard("array")
    least = max(flat.min_properties, len(flat.required))
    if flat.max_properties is not None and flat.max_properties < least:
        types.discard("object")
    if any(False in flat.properties.get(name, ()) for name in flat.required):
        types.discard("object")
    if flat.low is not None and flat.high is not None:
        empty = flat.low > flat.high or (
            flat.low == flat.high and (flat.low_open or flat.high_open)
        )
        if empty:
            types -= {"integer", "fraction"}
    if {"integer", "fraction"} & types and 1 in flat.no_multiples:
        types.discard("integer")
    if any(isinstance(step, int) or float(step).is_integer() for step in flat.multiples):
        types.discard("fraction")
    flat.types = frozenset(types)
    return flat


def disjoint(branches: Sequence[Schema]) -> bool:
    """Whether no value is of two of these schemas, as far as a look at types and tags tells."""
    looks = [_look(branch) for branch in branches]
    return all(
        _apart(one, other) for place, one in enumerate(looks) for other in looks[place + 1 :]
    )


def _look(schema: Schema) -> tuple[frozenset[str], Mapping[str, list[Any]]] | None:
    if not isinstance(schema, dict):
        return None
    types = frozenset(TYPES)
    if "type" in schema:
        types = _types(schema["type"])
    for value in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if value is not None:
            types &= {type_of(one) for one in value}
    tags: dict[str, list[Any]] = {"": schema["enum"]} if "enum" in schema else {}
    if "const" in schema:
        tags[""] = [schema["const"]]
    for name in schema.get("required", ()):
        part = schema.get("properties", {}).get(name)
        if isinstance(part, dict) and "const" in part:
            tags["." + name] = [part["const"]]
        elif isinstance(part, dict) and "enum" in part:
            tags["." + name] = part["enum"]
    return types, tags


def _apart(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return False
    shared = one[0] & other[0]
    if not shared:
        return True
    for name in one[1].keys() & other[1].keys():
        if (not name or shared == {"object"}) and not any(
            same(a, b) for a in one[1][name] for b in other[1][name]
        ):
            return True
    return False


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
