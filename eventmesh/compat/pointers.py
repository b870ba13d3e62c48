"""JSON pointers (RFC 6901): the one place that takes them apart and follows them.

A pointer such as `/properties/a~1b/0` names a place in a JSON document by the steps that lead to
it; `~1` is written for `/` and `~0` for `~`. A reference inside a schema is a pointer after a `#`,
as a URI fragment, so `%25` may be written for `%`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote


def resolve_pointer(document: Any, pointer: str) -> Any:
    """The value at this place of the document; None when nothing is there."""
    for step in pointer.split("/")[1:]:
        name = unescape(step)
        if isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        elif isinstance(document, dict) and name in document:
            document = document[name]
        else:
            return None
    return document


def resolve_reference(schema: Any, reference: str) -> Any:
    """The value that a reference such as `#/$defs/Address` points to.

    None when nothing is there, when the reference leads to another document, and when it is the
    name of an anchor.
    """
    if reference != "#" and not reference.startswith("#/"):
        return None
    return resolve_pointer(schema, unquote(reference[1:]))


def escape(name: str) -> str:
    """The name of a member as one step of a pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def unescape(step: str) -> str:
    """The name of a member that one step of a pointer stands for."""
    return step.replace("~1", "/").replace("~0", "~")
