"""Floats that JSON cannot express: infinity and NaN.

A message does not take them in its own fields. A model, dataclass or generic inside it has its own
configuration, with which pydantic takes them and writes them as null. That is read back where the
field may be null, and makes a dead letter of the message where it may not.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

_OWN_CONFIG = ("model", "dataclass", "typed-dict")
_NOT_VALUES = {"metadata", "config", "cls", "default"}


def unreadable_floats(message: BaseModel, data: bytes) -> list[str]:
    """The paths of floats that are null in the JSON of this message, and cannot be read as such.

    It costs nothing for models that take no such floats, nor for data without a null.
    """
    if b"null" not in data or not _may_have_non_finite(type(message)):
        return []
    try:
        type(message).model_validate_json(data)
    except ValidationError as error:
        return [
            ".".join(map(str, problem["loc"]))
            for problem in error.errors(include_url=False, include_context=False)
            if problem["type"] == "float_type" and problem["input"] is None
        ]
    return []


@lru_cache(maxsize=1024)
def _may_have_non_finite(model: type[BaseModel]) -> bool:
    """Whether a float anywhere in the model may be infinite or NaN."""
    ahead: list[tuple[Any, dict[str, Any]]] = [(model.__pydantic_core_schema__, {})]
    while ahead:
        part, config = ahead.pop()
        if isinstance(part, dict):
            if part.get("type") in _OWN_CONFIG:
                config = part.get("config") or {}
            if part.get("type") == "float" and part.get(
                "allow_inf_nan", config.get("allow_inf_nan", True)
            ):
                return True
            ahead += [(value, config) for name, value in part.items() if name not in _NOT_VALUES]
        elif isinstance(part, list | tuple):
            ahead += [(value, config) for value in part]
    return False
