"""A frozen version in people's words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from eventmesh.compat.pointers import resolve_reference

_WORDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more",
    "maxLength": "{} characters at most",
    "pattern": "like {}",
    "multipleOf": "a multiple of {}",
    "minItems": "{} or more",
    "maxItems": "{} at most",
}
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message, in words."""

    name: str
    type: str
    written: bool
    """Whether it is in every message."""
    required: bool
    """Whether a reader needs it."""
    default: str | None
    """What a reader takes where it is missing, as JSON."""


def fields(writer: dict[str, Any], reader: dict[str, Any]) -> list[Field]:
    """The fields of a version, of which one schema says what is written, the other what is
    read."""
    written, read = _followed(writer, writer), _followed(reader, reader)
    ours, theirs = _properties(written), _properties(read)
    return [
        Field(
            name,
            spell(ours.get(name, theirs.get(name)), writer if name in ours else reader),
            name in _required(written),
            name in _required(read),
            _default(theirs.get(name)),
        )
        for name in dict.fromkeys([*ours, *theirs])
    ]


def spell(schema: Any, root: dict[str, Any], depth: int = 0) -> str:
    """What may stand there."""
    if isinstance(schema, bool) or not isinstance(schema, dict):
        return "anything" if schema is not False else "nothing"
    if depth > _DEPTH:
        return "…"
    schema = _followed(schema, root)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            words = [spell(inner, root, depth + 1) for inner in schema[keyword]]
            return " or ".join(dict.fromkeys(words))
    if "const" in schema:
        return json.dumps(schema["const"])
    if isinstance(schema.get("enum"), list):
        return "one of " + ", ".join(map(json.dumps, schema["enum"][:20]))
    kinds = schema.get("type")
    if isinstance(kinds, list) and kinds:
        return " or ".join(spell({**schema, "type": kind}, root, depth + 1) for kind in kinds)
    return _of_type(kinds, schema, root, depth)


def _of_type(kind: Any, schema: dict[str, Any], root: dict[str, Any], depth: int) -> str:
    match kind:
        case "null":
            return "null"
        case "array":
            return f"list of {spell(schema.get('items', True), root, depth + 1)}{_bounds(schema)}"
        case "object":
            names = list(_properties(schema))
            if not names and "additionalProperties" in schema:
                return f"map of {spell(schema['additionalProperties'], root, depth + 1)}"
            return f"object with {', '.join(names[:20])}" if names else "object"
        case str():
            return f"{_WORDS.get(kind, kind)}{_bounds(schema)}"
        case _:
            return "anything"


def _bounds(schema: dict[str, Any]) -> str:
    if "x-decimal" in schema:  # a pattern says so too, in more words
        return " (decimal number)"
    words = [str(schema["format"])] if "format" in schema else []
    told = {"pattern"} if words else set()  # the pattern beside a format only spells it out
    words += [
        text.format(_short(schema[word]))
        for word, text in _BOUNDS.items()
        if word in schema and word not in told
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


def _followed(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """What the schema refers to, if it refers to a definition."""
    for _ in range(20):  # references may lead around in a circle
        reference = schema.get("$ref")
        found = resolve_reference(root, reference) if isinstance(reference, str) else None
        if not isinstance(found, dict):
            break
        schema = found
    return schema
