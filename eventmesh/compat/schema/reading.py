"""Checks a schema before anything else reads it.

Schemas come from files that other teams wrote, so nothing about them is taken for granted. Before
a comparison begins, this module makes sure that a schema consists of JSON values only, does not
contain itself, is small enough to be compared and is valid by the meta-schema of its draft.

Two errors keep two cases apart. `UsageError` means that the schema is not valid: its author has to
correct it, and the message says where. `Undecided` means that it may be valid but cannot be
compared here, for example because it is nested too deeply: the verdict is Unknown.
"""

from __future__ import annotations

import math
from typing import Any

from eventmesh.compat.budget import Undecided
from eventmesh.errors import UsageError

Schema = dict[str, Any] | bool

MAX_DEPTH = 200
"""Levels of JSON; deeper schemas are not compared."""
MAX_NODES = 250_000
"""Values in a schema; larger ones are not compared."""

_DIALECTS = {
    "http://json-schema.org/draft-04/schema": "4",
    "http://json-schema.org/draft-06/schema": "6",
    "http://json-schema.org/draft-07/schema": "7",
    "https://json-schema.org/draft/2019-09/schema": "2019",
    "https://json-schema.org/draft/2020-12/schema": "2020",
}
DRAFTS = ("4", "7", "2020")

_URIS = {draft: uri for uri, draft in _DIALECTS.items()}


def check_draft(draft: str) -> None:
    """Raises UsageError for a draft that is not supported."""
    if draft not in DRAFTS:
        raise UsageError(f"The draft {draft!r} is unknown: use one of {', '.join(DRAFTS)}.")


def dialect(schema: Schema, draft: str) -> str:
    """The draft this schema is written in: its own `$schema`, or else the one given."""
    stated = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(stated, str):
        return draft
    found = _DIALECTS.get(stated.rstrip("#"))
    if found is None:
        raise Undecided(f"the dialect {stated[:100]!r} is not supported")
    return found


def stated(schema: Schema, draft: str) -> Schema:
    """The schema with its dialect in `$schema`, as validators look for it."""
    if isinstance(schema, bool) or "$schema" in schema:
        return schema
    return {"$schema": _URIS[draft] + ("#" if draft in "467" else ""), **schema}


def check_schema(schema: Any, draft: str, where: str = "The schema") -> None:
    """Raises UsageError, which says where, if this is not a valid JSON Schema of its draft, and
    Undecided if it is too large to be compared."""
    if not isinstance(schema, dict | bool):
        raise UsageError(
            f"{where} is {_kind(schema)}: a JSON Schema is an object, or true or false."
        )
    _check_json(schema, where)
    _check_meta(schema, draft, where)


def check_target(schema: Any, draft: str) -> None:
    """Raises Undecided if the target of a reference is not a valid schema.

    A target below an unknown keyword has not been checked together with the whole schema.
    """
    import jsonschema_rs

    if not isinstance(schema, dict):
        raise Undecided("the target of a reference is not a valid schema")
    try:
        jsonschema_rs.meta.validate(stated(schema, dialect(schema, draft)))
    except (jsonschema_rs.ValidationError, ValueError):
        raise Undecided("the target of a reference is not a valid schema") from None


Way = tuple["Way", str | int] | None
"""The way to a value from the root, from its end; spelled out only where something is wrong."""


def _check_json(schema: Schema, where: str) -> None:
    nodes = 0
    inside: set[int] = set()
    ahead: list[tuple[Any, Way, int, bool]] = [(schema, None, 0, False)]
    while ahead:
        value, way, depth, left = ahead.pop()
        if left:
            inside.discard(id(value))
            continue
        nodes += 1
        if nodes > MAX_NODES:
            raise Undecided(f"the schema has more than {MAX_NODES:,} values")
        if type(value) is not dict and type(value) is not list:
            _check_scalar(value, way, where)
            continue
        if id(value) in inside:
            raise UsageError(
                f"{where} contains itself at {_pointer(way)}, so it is not valid JSON."
            )
        if depth >= MAX_DEPTH:
            raise Undecided(f"the schema is nested more than {MAX_DEPTH} levels deep")
        inside.add(id(value))
        ahead.append((value, way, depth, True))
        if isinstance(value, list):
            ahead += [(entry, (way, n), depth + 1, False) for n, entry in enumerate(value)]
            continue
        for name, entry in value.items():
            _check_scalar(name, way, where)
            if not isinstance(name, str):
                raise UsageError(
                    f"{where} has the name {name!r} at {_pointer(way)}: names must be strings."
                )
            ahead.append((entry, (way, name), depth + 1, False))


def _check_scalar(value: Any, way: Way, where: str) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise UsageError(
                f"{where} has a lone surrogate at {_pointer(way)}: it is not valid JSON."
            )
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} has {value} at {_pointer(way)}, which is not a JSON number.")
    elif value is not None and not isinstance(value, bool | int | float):
        raise UsageError(f"{where} has {_kind(value)} at {_pointer(way)}, which is not JSON.")


def _pointer(way: Way) -> str:
    parts: list[str] = []
    while way is not None:
        way, name = way
        parts.append(str(name)[:50])
    return "/" + "/".join(reversed(parts))


def _check_meta(schema: Schema, draft: str, where: str) -> None:
    import jsonschema_rs

    try:
        jsonschema_rs.meta.validate(stated(schema, dialect(schema, draft)))
    except jsonschema_rs.ValidationError as error:
        pointer = "".join(f"/{part}" for part in error.instance_path)
        raise UsageError(
            f"{where} is not a valid JSON Schema: at {pointer or '/'}, {error.message[:300]}."
        ) from None
    except ValueError as error:  # such as its limit on recursion
        raise Undecided(f"the schema cannot be read: {error}") from None


def _kind(value: Any) -> str:
    return f"a Python {type(value).__name__}"
