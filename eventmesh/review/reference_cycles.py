"""Schemas that describe a value by themselves: reference cycles without a field in between.

`{"$ref": "#"}` only says that a value is valid if it is valid, and resolving it never ends. A tree,
whose nodes hold nodes, is not such a cycle: each step goes one level down into the document.
Generating Python classes from a schema with such a cycle would not end, so it is looked for first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eventmesh.compat.schema.pointers import resolve_reference

_LISTS = ("allOf", "anyOf", "oneOf")
_SINGLE = ("else", "if", "not", "then")


def find_cycle(schema: Any) -> str | None:
    """A reference that leads back to itself without going down into a field or an item, if any."""
    open_, done = set[str](), set[str]()

    def leads_back(reference: str) -> bool:
        if reference in done:
            return False
        if reference in open_:
            return True
        open_.add(reference)
        # We do not follow anchors, and take `#name` for the whole schema, which is the safe guess.
        is_anchor = reference.startswith("#") and not reference.startswith("#/")
        target = schema if is_anchor else resolve_reference(schema, reference)
        found = any(leads_back(inner) for inner in _references_in_place(target))
        open_.discard(reference)
        done.add(reference)
        return found

    return next((each for each in dict.fromkeys(_all_references(schema)) if leads_back(each)), None)


def _all_references(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(each.get("$ref"), str):
                yield each["$ref"]
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def _references_in_place(schema: Any) -> Iterator[str]:
    """The references that apply to the same value as this schema does."""
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("$ref"), str):
        yield schema["$ref"]
    for keyword in _LISTS:
        inner = schema.get(keyword)
        for each in inner if isinstance(inner, list) else ():
            yield from _references_in_place(each)
    for keyword in _SINGLE:
        yield from _references_in_place(schema.get(keyword))
