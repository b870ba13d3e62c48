"""What each keyword adds to an alternative, and what failing it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eventmesh.compat.schema.flat import Contains, Flat, Others
from eventmesh.compat.schema.values import same, types_of

FAILS = "x-fails"
FAILING = {
    "type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minLength", "maxLength", "pattern", "format", "minItems", "maxItems",
    "minProperties", "maxProperties",
}  # fmt: skip
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


def narrow(flat: Flat, schema: Mapping[str, Any]) -> None:
    """Add the plain keywords of a schema to an alternative."""
    for keyword, value in schema.items():
        if keyword == FAILS:
            for failing, bound in value.items():
                _narrow_by_failure(flat, failing, bound)
        elif keyword in _NARROW:
            _NARROW[keyword](flat, value, schema)
        elif keyword in ("unevaluatedItems", "unevaluatedProperties"):
            flat.exact = False


def _narrow_type(flat: Flat, value: Any, schema: Mapping[str, Any]) -> None:
    flat.types &= types_of(value)


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
        flat.types -= types_of(value)
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
