"""A JSON Schema in several files as one document that refers to nothing outside itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

from eventmesh.errors import UsageError
from eventmesh.review.json_files import read_schema

_MAX_FILES = 200
_VALUES = {"const", "default", "enum", "example", "examples"}  # what stands below is no schema
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def bundle(path: Path) -> dict[str, Any]:
    """The schema with the files that it refers to among its definitions.

    Nothing is fetched: UsageError for a reference to a network address, and for one to a file
    outside the folder of the schema.
    """
    schema = read_schema(path)
    main = path.resolve()
    keyword = "definitions" if "definitions" in schema else "$defs"
    keys, waiting = {main: ""}, [main]
    read = {main: schema}

    def moved(reference: str, document: Path) -> str:
        """The reference as it is in the bundle; its file is read if it is a new one."""
        target, fragment = _target(reference, read[document], document, main.parent)
        if target not in keys:
            if len(keys) >= _MAX_FILES:
                raise UsageError(f"{path} refers to more than {_MAX_FILES} files.")
            keys[target] = f"/{keyword}/{_key(target, len(keys))}"
            read[target] = read_schema(target)
            waiting.append(target)
        if fragment and not fragment.startswith("/") and keys[target]:
            raise UsageError(f"{document} refers to {reference!r}: an anchor in another file.")
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
    """The file that is meant and the pointer in it."""
    own = document.get("$id", document.get("id"))
    address, fragment = urldefrag(reference)
    if not address or (isinstance(own, str) and address == urldefrag(own)[0]):
        return place, fragment
    if ":" in address or address.startswith("//"):
        raise UsageError(
            f"{place} refers to {reference!r}, and nothing is fetched from a network: save that "
            f"schema as a file beside it, and refer to the file."
        )
    try:
        target = (place.parent / unquote(address)).resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, or no name of a file
        raise UsageError(f"{place} refers to {reference!r}, which is no file.") from None
    if not target.is_relative_to(folder):
        raise UsageError(
            f"{place} refers to {reference!r}, which is outside the folder {folder}: put the file "
            f"into it."
        )
    return target, fragment


def _rewritten(schema: Any, moved: Callable[[str], str]) -> Any:
    """The schema with its references changed, where they are references."""
    if isinstance(schema, list):
        return [_rewritten(inner, moved) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    return dict(_pairs(schema, moved))


def _pairs(schema: dict[str, Any], moved: Callable[[str], str]) -> Iterator[tuple[str, Any]]:
    for keyword, value in schema.items():
        if keyword in _REFERENCES:
            if not isinstance(value, str):
                raise UsageError(f"A {keyword} is {value!r}: it must be a text.")
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
