"""Narrows an alternative by one keyword, or by the keyword's negation.

`maxLength: 5` sets the alternative's `max_length` to 5 unless it is smaller already. Its negation
leaves the strings of six characters and more, so it sets `min_length` to 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eventmesh.compat.schema.alternative import Alternative, Contains, Others
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


def narrow(alternative: Alternative, schema: Mapping[str, Any]) -> None:
    """Add the plain keywords of a schema to an alternative."""
    for keyword, value in schema.items():
        if keyword == FAILS:
            for failing, bound in value.items():
                _narrow_by_failure(alternative, failing, bound)
        elif keyword in _NARROW:
            _NARROW[keyword](alternative, value, schema)
        elif keyword in ("unevaluatedItems", "unevaluatedProperties"):
            alternative.exact = False


def _narrow_type(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    alternative.types &= types_of(value)


def _narrow_values(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    if alternative.values is None:
        alternative.values = tuple(value)
    else:
        alternative.values = tuple(one for one in alternative.values if _among(one, value))


def _among(value: Any, values: Sequence[Any]) -> bool:
    return any(same(value, other) for other in values)


def _narrow_low(alternative: Alternative, value: Any, open_: bool) -> None:
    if alternative.low is None or value > alternative.low or (value == alternative.low and open_):
        alternative.low, alternative.low_open = value, open_


def _narrow_high(alternative: Alternative, value: Any, open_: bool) -> None:
    if (
        alternative.high is None
        or value < alternative.high
        or (value == alternative.high and open_)
    ):
        alternative.high, alternative.high_open = value, open_


def _least(attribute: str) -> Any:
    def narrow(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
        setattr(alternative, attribute, max(getattr(alternative, attribute), int(value)))

    return narrow


def _most(attribute: str) -> Any:
    def narrow(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
        bound = getattr(alternative, attribute)
        setattr(alternative, attribute, int(value) if bound is None else min(bound, int(value)))

    return narrow


def _add(attribute: str) -> Any:
    def narrow(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
        setattr(alternative, attribute, (*getattr(alternative, attribute), value))

    return narrow


def _narrow_lists(alternative: Alternative, schema: Mapping[str, Any]) -> None:
    alternative.lists = (
        *alternative.lists,
        (tuple(schema.get("prefixItems", ())), schema.get("items", True)),
    )


def _narrow_items(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    if "prefixItems" not in schema:
        _narrow_lists(alternative, schema)


def _narrow_contains(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    contains = Contains(value, int(schema.get("minContains", 1)), schema.get("maxContains"))
    alternative.contains = (*alternative.contains, contains)


def _narrow_properties(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    merged = dict(alternative.properties)
    for name, part in value.items():
        merged[name] = (*merged.get(name, ()), part)
    alternative.properties = merged


def _narrow_by_pattern(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    alternative.by_pattern = (*alternative.by_pattern, *value.items())


def _narrow_others(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    names = frozenset(schema.get("properties", ()))
    patterns = tuple(schema.get("patternProperties", ()))
    alternative.others = (*alternative.others, Others(names, patterns, value))


def _narrow_required(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    alternative.required |= frozenset(value)


def _narrow_unique(alternative: Alternative, value: Any, schema: Mapping[str, Any]) -> None:
    alternative.unique = alternative.unique or bool(value)


_NARROW = {
    "type": _narrow_type,
    "enum": _narrow_values,
    "const": lambda alternative, value, schema: _narrow_values(alternative, [value], schema),
    "minimum": lambda alternative, value, schema: _narrow_low(alternative, value, False),
    "exclusiveMinimum": lambda alternative, value, schema: _narrow_low(alternative, value, True),
    "maximum": lambda alternative, value, schema: _narrow_high(alternative, value, False),
    "exclusiveMaximum": lambda alternative, value, schema: _narrow_high(alternative, value, True),
    "multipleOf": _add("multiples"),
    "minLength": _least("min_length"),
    "maxLength": _most("max_length"),
    "pattern": _add("patterns"),
    "format": _add("formats"),
    "minItems": _least("min_items"),
    "maxItems": _most("max_items"),
    "uniqueItems": _narrow_unique,
    "items": _narrow_items,
    "prefixItems": lambda alternative, value, schema: _narrow_lists(alternative, schema),
    "contains": _narrow_contains,
    "minProperties": _least("min_properties"),
    "maxProperties": _most("max_properties"),
    "required": _narrow_required,
    "properties": _narrow_properties,
    "patternProperties": _narrow_by_pattern,
    "additionalProperties": _narrow_others,
    "propertyNames": _add("names"),
}


def _narrow_by_failure(alternative: Alternative, keyword: str, value: Any) -> None:
    """Narrow to what fails a single keyword."""
    if keyword == "type":
        alternative.types -= types_of(value)
        return
    if keyword in ("enum", "const"):
        alternative.excluded = (*alternative.excluded, *(value if keyword == "enum" else [value]))
        return
    alternative.types &= frozenset(_KEYWORDS_OF[keyword])
    _FAILURES[keyword](alternative, value)


def _above(attribute: str) -> Any:
    def narrow(alternative: Alternative, value: Any) -> None:
        setattr(alternative, attribute, max(getattr(alternative, attribute), int(value) + 1))

    return narrow


def _below(attribute: str) -> Any:
    def narrow(alternative: Alternative, value: Any) -> None:
        if value <= 0:
            alternative.types = frozenset()
        bound = getattr(alternative, attribute)
        most = int(value) - 1
        setattr(alternative, attribute, most if bound is None else min(bound, most))

    return narrow


def _too(attribute: str) -> Any:
    def narrow(alternative: Alternative, value: Any) -> None:
        setattr(alternative, attribute, (*getattr(alternative, attribute), value))

    return narrow


_FAILURES = {
    "minimum": lambda alternative, value: _narrow_high(alternative, value, True),
    "exclusiveMinimum": lambda alternative, value: _narrow_high(alternative, value, False),
    "maximum": lambda alternative, value: _narrow_low(alternative, value, True),
    "exclusiveMaximum": lambda alternative, value: _narrow_low(alternative, value, False),
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
