"""Whether a document is valid, with `format` as pydantic enforces it.

`contentEncoding` and `contentMediaType` are annotations here, in every draft. `jsonschema-rs`
checks them up to draft 7, and other validators do not, so no verdict may depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from eventmesh.compat.budget import Undecided
from eventmesh.compat.schema.formats import checks
from eventmesh.compat.schema.reading import Schema, dialect, stated

Check = Callable[[Any], bool]


def validator(schema: Schema, draft: str) -> Check:
    """Whether a document is accepted, by `jsonschema-rs`. Undecided for a schema it cannot take."""
    import jsonschema_rs

    if isinstance(schema, bool):
        return lambda document: schema
    try:
        made = jsonschema_rs.validator_for(
            _without_content(stated(schema, dialect(schema, draft))),
            formats=checks(),
            validate_formats=True,
            offline=True,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise Undecided(f"the schema cannot be used: {_first_line(error)}") from None
    return made.is_valid


def explain(schema: Schema, draft: str, document: Any) -> str:
    """What is wrong with a document, in one line; empty when nothing is."""
    import jsonschema_rs

    if isinstance(schema, bool):
        return "" if schema else "no document is accepted"
    made = jsonschema_rs.validator_for(
        _without_content(stated(schema, dialect(schema, draft))),
        formats=checks(),
        validate_formats=True,
        offline=True,
    )
    for error in made.iter_errors(document):
        place = ".".join(map(str, error.instance_path))
        return f"{place}: {error.message}" if place else str(error.message)
    return ""


_CONTENT = ("contentEncoding", "contentMediaType")
_NAMES = ("properties", "patternProperties", "definitions", "$defs", "dependencies")


def _without_content(schema: Any, *, is_names: bool = False) -> Any:
    """The schema without the annotations that some validators check."""
    if isinstance(schema, list):
        return [_without_content(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: part
        if name in ("enum", "const") and not is_names
        else _without_content(part, is_names=name in _NAMES and not is_names)
        for name, part in schema.items()
        if is_names or name not in _CONTENT
    }


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text, as JSON Schema reads patterns."""
    return _matcher(pattern)(text)


@lru_cache(maxsize=2048)
def _matcher(pattern: str) -> Check:
    try:
        return validator({"pattern": pattern}, "2020")
    except Undecided:
        return lambda text: False


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
