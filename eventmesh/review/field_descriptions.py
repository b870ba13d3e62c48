"""Describing the fields of a message in words: `integer (at least 1)`, `list of string`.

`eventmesh schema show` prints them, so that nobody has to read a JSON Schema to learn what a
message holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from eventmesh.compat.schema.pointers import resolve_reference

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "matching {}",
    "multipleOf": "a multiple of {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
_MAX_DEPTH = 4
_MAX_NAMES = 20


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message."""

    name: str
    type: str
    """Its type in words."""
    written: bool
    """Whether the writer always sends it."""
    required: bool
    """Whether the reader rejects a message without it."""
    default: str | None
    """The reader's default for it, as JSON."""


def describe_fields(writer: dict[str, Any], reader: dict[str, Any]) -> list[Field]:
    """The fields of a version, given the schema that it writes and the schema that it reads."""
    written, read = _without_reference(writer, writer), _without_reference(reader, reader)
    ours, theirs = _properties(written), _properties(read)
    return [
        Field(
            name,
            describe_type(ours.get(name, theirs.get(name)), writer if name in ours else reader),
            name in _required(written),
            name in _required(read),
            _default(theirs.get(name)),
        )
        for name in dict.fromkeys([*ours, *theirs])
    ]


def describe_type(schema: Any, root: dict[str, Any], depth: int = 0) -> str:
    """The values that the schema allows, in words."""
    if isinstance(schema, bool) or not isinstance(schema, dict):
        return "anything" if schema is not False else "nothing"
    if depth > _MAX_DEPTH:
        return "…"
    schema = _without_reference(schema, root)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            words = [describe_type(inner, root, depth + 1) for inner in schema[keyword]]
            return " or ".join(dict.fromkeys(words))
    if "const" in schema:
        return json.dumps(schema["const"])
    if isinstance(schema.get("enum"), list):
        return "one of " + ", ".join(map(json.dumps, schema["enum"][:_MAX_NAMES]))
    kinds = schema.get("type")
    if isinstance(kinds, list) and kinds:
        return " or ".join(
            describe_type({**schema, "type": kind}, root, depth + 1) for kind in kinds
        )
    return _of_type(kinds, schema, root, depth)


def _of_type(kind: Any, schema: dict[str, Any], root: dict[str, Any], depth: int) -> str:
    match kind:
        case "null":
            return "null"
        case "array":
            items = describe_type(schema.get("items", True), root, depth + 1)
            return f"list of {items}{_bounds(schema)}"
        case "object":
            names = list(_properties(schema))
            if not names and "additionalProperties" in schema:
                return f"map of {describe_type(schema['additionalProperties'], root, depth + 1)}"
            return f"object with {', '.join(names[:_MAX_NAMES])}" if names else "object"
        case str():
            return f"{kind}{_bounds(schema)}"
        case _:
            return "anything"


def _bounds(schema: dict[str, Any]) -> str:
    if "x-decimal" in schema:  # it has a long pattern that says the same
        return " (decimal)"
    words = [str(schema["format"])] if "format" in schema else []
    skipped = {"pattern"} if words else set()  # beside a format, it says the same
    words += [
        text.format(_short(schema[word]))
        for word, text in _BOUNDS.items()
        if word in schema and word not in skipped
    ]
    return f" ({', '.join(words)})" if words else ""


def _short(bound: Any) -> str:
    text = str(bound)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _default(schema: Any) -> str | None:
    if isinstance(schema, dict) and "default" in schema:
        return json.dumps(schema["default"])
    return None


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def _required(schema: dict[str, Any]) -> list[Any]:
    found = schema.get("required")
    return found if isinstance(found, list) else []


def _without_reference(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema, or the definition that it refers to."""
    for _ in range(20):  # references may form a cycle
        reference = schema.get("$ref")
        found = resolve_reference(root, reference) if isinstance(reference, str) else None
        if not isinstance(found, dict):
            break
        schema = found
    return schema
