"""Values that no subscriber could read, in fields that take anything.

A field annotated with `Any`, `object`, `JsonValue` or a bare `dict` is not checked when its message
is made. It may hold a NaN, which is written as null and arrives as None; and nesting or a number
that is written, but which parsers of JSON decline, so that every subscriber dead-letters it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel, JsonValue, PlainSerializer, WrapSerializer
from pydantic_core import from_json

_ANYTHING = (Any, object, JsonValue, dict, list, tuple, set, frozenset)
"""Annotations that say nothing of what is in a value; collections only where they are bare."""

_SMALLEST = 400
"""Bytes of JSON below which no parser declines it: that needs 200 levels, with two brackets each,
or a number of 4,300 digits."""


def unread_values(message: BaseModel, data: bytes) -> str:
    """What in this message, whose JSON is `data`, nobody could read, and why; empty if all can be.

    It costs nothing for models without a field that takes anything, apart from asking.
    """
    if not any_fields(type(message)):
        return ""
    if b"null" in data:
        lost = list(_non_finite(message, ""))
        if lost:
            return f"{', '.join(lost)} is infinite or not a number, and would arrive as None"
    if len(data) > _SMALLEST:
        try:
            from_json(data)
        except ValueError as error:
            return f"its JSON is not taken by parsers: {error}"
    return ""


@lru_cache(maxsize=1024)
def any_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields that take anything, themselves or in a model within them, but for those with a
    serializer of their own."""
    return tuple(_fields(model, frozenset()))


def _fields(model: type[BaseModel], within: frozenset[type[BaseModel]]) -> Iterator[str]:
    decorators = model.__pydantic_decorators__
    if model in within or decorators.model_serializers:
        return
    written = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    for name, field in model.model_fields.items():
        has_serializer = any(
            isinstance(each, PlainSerializer | WrapSerializer) for each in field.metadata
        )
        if not (name in written or "*" in written or has_serializer) and _takes_anything(
            field.annotation, within | {model}
        ):
            yield name


def _takes_anything(annotation: Any, within: frozenset[type[BaseModel]]) -> bool:
    if any(annotation is each for each in _ANYTHING):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(True for _ in _fields(annotation, within))
    return any(_takes_anything(each, within) for each in get_args(annotation))


def _non_finite(value: Any, path: str) -> Iterator[str]:
    """The paths of floats that JSON cannot express."""
    match value:
        case float():
            if not math.isfinite(value):
                yield path
        case str() | int() | None:
            pass  # nearly all values, for which the classes below need not be asked
        case dict():
            for key, item in value.items():
                yield from _non_finite(item, f"{path}.{key}")
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _non_finite(item, f"{path}.{number}")
        case BaseModel():
            for name in any_fields(type(value)):
                yield from _non_finite(getattr(value, name), f"{path}.{name}" if path else name)
