"""Defaults that a model writes and cannot read.

Pydantic does not validate a default: `note: str = None` is written as null, which no reader of that
model takes. The schema of what is written has to allow such a default beside what the type allows,
or nobody is told that these messages cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from eventmesh.compat.budget import Undecided
from eventmesh.compat.schema.validity import validator

_DECIMAL = '"x-decimal"'  # bounds of which a validator of schemas knows nothing
_VALIDATORS_ERRORS = {"value_error", "assertion_error"}
"""Left out: what a validator rejects today it may take tomorrow, and a schema stays the same."""


def with_own_defaults(
    shown: dict[str, Any], model: type[BaseModel], *, by_alias: bool
) -> dict[str, Any]:
    """The schema of what the model writes, in which its unreadable defaults are allowed."""
    properties = dict(shown.get("properties", {}))
    for name, field in _unvalidated(model):
        written_as = field.serialization_alias if by_alias else None
        node = properties.get(written_as or name)
        if node is None or "default" not in node or not _is_doubtful(node):
            continue
        if _is_rejected(model, name, field, node["default"]):
            allowed = {keyword: part for keyword, part in node.items() if keyword != "default"}
            default = node["default"]
            properties[written_as or name] = {
                "anyOf": [allowed, {"const": default}],
                "default": default,
            }
    return {**shown, "properties": properties} if properties else shown


def _unvalidated(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    of_model = model.model_config.get("validate_default", False)
    for name, field in model.model_fields.items():
        validated = of_model if field.validate_default is None else field.validate_default
        if not validated:
            yield name, field


def _is_doubtful(node: Mapping[str, Any]) -> bool:
    """Whether the model has to be asked, because the schema does not clearly allow the default."""
    text = json.dumps(node)
    if '"$ref"' in text:  # a part of the default has a schema of its own, where it is looked at
        return node["default"] is None and '"null"' not in text
    with suppress(Undecided):
        return _DECIMAL in text or not validator(dict(node), "2020")(node["default"])
    return False


def _is_rejected(model: type[BaseModel], name: str, field: FieldInfo, default: Any) -> bool:
    try:
        model.__pydantic_validator__.validate_json(
            to_json({name: default}), by_alias=False, by_name=True
        )
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        kinds = [each["type"] for each in problems if each["loc"][:1] in ((name,), (field.alias,))]
        return any(kind not in _VALIDATORS_ERRORS for kind in kinds)
    except Exception:  # noqa: BLE001  # a user's validator may raise anything
        return False
    return False
