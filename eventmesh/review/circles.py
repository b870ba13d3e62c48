"""Schemas that say of a value what they say of it: a circle of references that leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_LISTS = ("allOf", "anyOf", "oneOf")
_SINGLE = ("else", "if", "not", "then")


def circle(schema: Any) -> str | None:
    """A reference that leads back to itself without going down into a field or an entry; None when
    there is none. Models made of it would never come to an end, and take the process with them."""
    open_, done = set[str](), set[str]()

    def leads_back(reference: str) -> bool:
        if reference in done:
            return False
        if reference in open_:
            return True
        open_.add(reference)
        found = any(leads_back(inner) for inner in _in_place(_at(schema, reference)))
        open_.discard(reference)
        done.add(reference)
        return found

    return next((each for each in dict.fromkeys(_references(schema)) if leads_back(each)), None)


def _references(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(each.get("$ref"), str):
                yield each["$ref"]
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _in_place(schema: Any) -> Iterator[str]:
    """The references that say something of the same value as this schema."""
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for keyword in _LISTS:
        inner = schema.get(keyword)
        for each in inner if isinstance(inner, list) else ():
            yield from _in_place(each)
    for keyword in _SINGLE:
        yield from _in_place(schema.get(keyword))


def _at(schema: Any, reference: str) -> Any:
    """What the reference means, or None."""
    if not reference.startswith("#"):
        return None
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and name.isdecimal() and int(name) < len(schema):
            schema = schema[int(name)]
        else:
            schema = schema.get(name) if isinstance(schema, dict) else None
    return schema
