"""Comparing the user's functions in schemas that different releases have written.

A function is written as `check:EARLIER.DIGEST`; earlier releases froze `check:EARLIER`. Of two such
functions the digests count, and where one side has only the earlier digest, that counts:

| frozen        | now           | the same |
|---------------|---------------|----------|
| `check:a1.b1` | `check:a2.b1` | yes      |
| `check:a1.b1` | `check:a1.b2` | no       |
| `check:a1`    | `check:a1.b1` | yes      |
| `check:a1`    | `check:a2.b1` | no       |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from eventmesh.compat.pydantic_models.schemas import CHECKED, mapped

_EARLIER = re.compile(r"(.+):([0-9a-f]{12})", re.DOTALL)
_TODAY = re.compile(r"(.+):([0-9a-f]{12})\.([0-9a-f]{16})", re.DOTALL)


def alike(*schemas: Any) -> list[Any]:
    """The schemas with the same text for each function that is the same in them."""
    earlier = {
        check for schema in schemas for check in checks_in(schema) if _EARLIER.fullmatch(check)
    }

    def told(check: str) -> str:
        found = _TODAY.fullmatch(check)
        if found is None:
            return check
        name, before, today = found.groups()
        return f"{name}:{before}" if f"{name}:{before}" in earlier else f"{name}:{today}"

    def change(node: dict[str, Any]) -> dict[str, Any]:
        checks = checks_of(node)
        return {**node, CHECKED: [*map(told, checks)]} if checks else node

    return [mapped(schema, change) for schema in schemas]


def checks_in(schema: Any) -> list[str]:
    """The functions named anywhere in a schema."""
    found: list[str] = []

    def look(node: dict[str, Any]) -> dict[str, Any]:
        found.extend(checks_of(node))
        return node

    mapped(schema, look)
    return found


def checks_of(node: Mapping[str, Any]) -> list[str]:
    """The functions named in this part of a schema, not in those inside it."""
    checks = node.get(CHECKED)  # a lock file may hold anything
    return [str(check) for check in checks] if isinstance(checks, list) else []
