"""Combining a JSON Schema and the files that it refers to into one document.

A reference such as `address.json#/$defs/Street` becomes `#/$defs/address_1/$defs/Street`, and the
content of that file is added below `$defs`. Only files in the folder of the schema are read, and
nothing is fetched from a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

from eventmesh.errors import UsageError
from eventmesh.review.json_files import read_schema

_MAX_FILES = 200
_VALUES = {"const", "default", "enum", "example", "examples"}  # their values are not schemas
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def bundle(path: Path) -> dict[str, Any]:
    """Read a schema, with the files that it refers to among its definitions.

    UsageError for a reference to a network address or to a file outside the folder of the schema.
    """
    schema = read_schema(path)
    main = path.resolve()
    keyword = "definitions" if "definitions" in schema else "$defs"
    keys, waiting = {main: ""}, [main]
    read = {main: schema}

    def moved(reference: str, document: Path) -> str:
        """The reference as it is in the bundle; reads its file if it is a new one."""
        target, fragment = _target(reference, read[document], document, main.parent)
        if target not in keys:
            if len(keys) >= _MAX_FILES:
                raise UsageError(
                    f"{path} refers to more than {_MAX_FILES} files, which is the limit."
                )
            keys[target] = f"/{keyword}/{_key(target, len(keys))}"
            read[target] = read_schema(target)
            waiting.append(target)
        if fragment and not fragment.startswith("/") and keys[target]:
            raise UsageError(
                f"{document} refers to {reference!r}, an anchor in another file, which is not "
                f"supported. Refer to it by a JSON pointer."
            )
        return f"#{keys[target]}{fragment}"

    parts: dict[Path, Any] = {}
    while waiting:
        document = waiting.pop()
        parts[document] = _rewritten(
            read[document],
            lambda reference, at=document: moved(reference, at),  # type: ignore[misc]
        )
    whole: dict[str, Any] = parts.pop(main)
    if parts:
        whole[keyword] = dict(whole.get(keyword, {}))
    for document, part in parts.items():
        whole[keyword][keys[document].rpartition("/")[2]] = {
            name: value for name, value in part.items() if name not in ("$id", "id", "$schema")
        }
    return whole


def _target(
    reference: str, document: dict[str, Any], place: Path, folder: Path
) -> tuple[Path, str]:
    """The file that a reference leads to, and the pointer inside it."""
    own = document.get("$id", document.get("id"))
    address, fragment = urldefrag(reference)
    if not address or (isinstance(own, str) and address == urldefrag(own)[0]):
        return place, fragment
    if ":" in address or address.startswith("//"):
        raise UsageError(
            f"{place} refers to {reference!r}, and schemas are not fetched from a network. Save "
            f"that schema as a file beside it, and refer to the file."
        )
    try:
        target = (place.parent / unquote(address)).resolve()
    except (OSError, RuntimeError, ValueError):  # a cycle of symbolic links, or not a file name
        raise UsageError(f"{place} refers to {reference!r}, which does not name a file.") from None
    if not target.is_relative_to(folder):
        raise UsageError(
            f"{place} refers to {reference!r}, which is outside the folder {folder}. Move the file "
            f"into that folder."
        )
    return target, fragment


def _rewritten(schema: Any, moved: Callable[[str], str]) -> Any:
    """The schema with each of its references replaced; a field called `$ref` is not one."""
    if isinstance(schema, list):
        return [_rewritten(inner, moved) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return dict(_pairs(schema, moved))


def _pairs(schema: dict[str, Any], moved: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _REFERENCES:
            if not isinstance(value, str):
                raise UsageError(f"{keyword} is {value!r}: it must be a string.")
            yield keyword, moved(value)
        elif keyword in _VALUES:
            yield keyword, value
        elif keyword in _MAPS and isinstance(value, dict):
            yield keyword, {name: _rewritten(inner, moved) for name, inner in value.items()}
        else:
            yield keyword, _rewritten(value, moved)


def _key(path: Path, number: int) -> str:
    word = "".join(char if char.isascii() and char.isalnum() else "_" for char in path.stem)
    return f"{word}_{number}"
