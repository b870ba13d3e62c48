"""JSON pointers (RFC 6901): the one place that writes them, takes them apart and follows them.

A pointer such as `/properties/a~1b/0` names a place in a JSON document by the steps that lead to
it; `~1` is written for `/` and `~0` for `~`. A reference inside a schema is a pointer after a `#`,
as a URI fragment, so `%25` may be written for `%`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote


def pointer_to(path: Iterable[str | int]) -> str:
    """The pointer with these parts: `/a~1b/0` for `("a/b", 0)`, empty for the whole."""
    return "".join(f"/{escaped(part)}" for part in path)


def escaped(part: str | int) -> str:
    """One part of a pointer as it is written there."""
    return str(part).replace("~", "~0").replace("/", "~1")


def parts_of(pointer: str) -> list[str]:
    """The parts of a pointer, each as the name that it stands for."""
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]


def at(document: Any, pointer: str) -> Any:
    """The value at a pointer; None where there is none."""
    for part in parts_of(pointer):
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return None
    return document


def resolve_reference(document: Any, reference: str) -> Any:
    """What a `$ref` within this document refers to, such as `#/$defs/a%20b`.

    None where it refers to another document, to an anchor, or to nothing.
    """
    pointer = unquote(reference.removeprefix("#"))
    if not reference.startswith("#") or (pointer and not pointer.startswith("/")):
        return None
    return at(document, pointer)
