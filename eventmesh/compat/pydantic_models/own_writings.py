"""What a reader surely takes that is only known by its frozen schema, where that says little.

A before validator may change any value, so the schema of what is read says nothing of a field that
has one: neither its type nor its bounds, nor the validators after it. Only what the same version
wrote there is surely read:

| frozen: what is read | frozen: what was written           | surely read                    |
|----------------------|------------------------------------|--------------------------------|
| checked by `strip`   | from 1 on, checked by `strip`      | from 1 on, checked by `strip`  |
| checked by `migrate` | fields `a`, `b`, `b` has a default | `a`, perhaps `b`, other fields |
| text, is stripped    | text without white space around it | text without white space …     |
| `_missing_` of enum  | "red" or "blue"                    | "red" or "blue"                |

The last two are checks that no writer names, as it writes nothing that had to be checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eventmesh.compat.pydantic_models.checks import checks_of
from eventmesh.compat.pydantic_models.schemas import CHECKED, STRIPPED, STRIPPED_TEXT, mapped

_SAYS_NOTHING = {CHECKED, "default", "$defs", "$schema"}
_DEFINITIONS = "#/$defs/"
_AS_WRITTEN = ":written"  # in no name that pydantic gives to a definition


def reading_its_own(reader: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The reader's schema, with what the same version writes where only functions are known.

    `own` is its `writer_schema`. The same object is returned if there is no such place.
    """
    definitions = own.get("$defs", {})
    read = {
        **_paired(reader, [own]),
        "$defs": {
            name: _paired(node, [definitions[name]] if name in definitions else [])
            for name, node in reader.get("$defs", {}).items()
        },
    }
    if read == {"$defs": {}, **reader}:
        return reader
    read["$defs"] |= {f"{name}{_AS_WRITTEN}": _opened(node) for name, node in definitions.items()}
    return read


def _paired(node: Any, own: Sequence[Any]) -> Any:
    """A part of the reader's schema, with parts of its own writer's schema for the same values."""
    if not isinstance(node, dict):
        return node
    ways = [way for each in own for way in _ways(each)]
    checks = checks_of(node)
    known = {*_SAYS_NOTHING, "type"} if STRIPPED in checks else _SAYS_NOTHING
    if checks and node.keys() <= known:
        written = [_opened(way) for way in ways if all(_makes(way, check) for check in checks)]
        return written[0] if len(written) == 1 else {"anyOf": written} if written else node
    paired = dict(node)
    for keyword in ("anyOf", "oneOf"):
        if keyword in node:
            paired[keyword] = [_paired(entry, ways) for entry in node[keyword]]
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            inner = [way[keyword] for way in ways if keyword in way]
            paired[keyword] = _paired(node[keyword], inner)
    if "properties" in node:
        fields = [way["properties"] for way in ways if "properties" in way]
        paired["properties"] = {
            name: _paired(entry, [each[name] for each in fields if name in each])
            for name, entry in node["properties"].items()
        }
    if "prefixItems" in node:
        rows = [way["prefixItems"] for way in ways if "prefixItems" in way]
        paired["prefixItems"] = [
            _paired(entry, [row[index] for row in rows if index < len(row)])
            for index, entry in enumerate(node["prefixItems"])
        ]
    return paired


def _makes(way: Mapping[str, Any], check: str) -> bool:
    """Whether all that is written here has passed the check of the reader."""
    if check == STRIPPED:
        return STRIPPED_TEXT in (part.get("pattern") for part in (way, *way.get("allOf", ())))
    if check.partition(":")[0] == "_missing_":
        return "enum" in way or "const" in way
    return check in checks_of(way)


def _ways(node: Any) -> Iterator[Mapping[str, Any]]:
    """This part of a schema, and all its alternatives."""
    if isinstance(node, dict):
        yield node
        for keyword in ("anyOf", "oneOf"):
            for entry in node.get(keyword, ()):
                yield from _ways(entry)


def _opened(node: Any) -> Any:
    """What is read of what is written: fields with a default may be missing, and others be there.

    Whether the model forbids others is not known, as its schema of what is read does not tell.
    """

    def open_up(part: dict[str, Any]) -> dict[str, Any]:
        part = {name: value for name, value in part.items() if name != "$defs"}
        fields, reference = part.get("properties"), part.get("$ref")
        if isinstance(fields, dict):
            if part.get("additionalProperties") is False:
                del part["additionalProperties"]
            part["required"] = [
                name for name in part.get("required", ()) if "default" not in fields.get(name, ())
            ]
        if isinstance(reference, str) and reference.startswith(_DEFINITIONS):
            part["$ref"] = reference + _AS_WRITTEN
        return part

    return mapped(node, open_up)
