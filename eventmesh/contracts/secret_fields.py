"""Fields of models whose values pydantic does not write.

It writes a SecretStr as asterisks, so that a log does not show it. That is right for whoever reads
a message, and loses the value where a message is published or a saga's state is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, PlainSerializer, Secret, SecretBytes, SecretStr, WrapSerializer

_SECRETS = (Secret, SecretBytes, SecretStr)


def secret_fields(model: type[BaseModel]) -> list[str]:
    """The paths of the model's secret fields, such as `payment.card`, but for those that have a
    serializer, which may write them."""
    return list(_paths(model, set()))


def _paths(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    decorators = model.__pydantic_decorators__
    if model in seen or decorators.model_serializers:
        return
    seen.add(model)
    written = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    for name, field in model.model_fields.items():
        has_serializer = any(
            isinstance(each, PlainSerializer | WrapSerializer) for each in field.metadata
        )
        if name in written or "*" in written or has_serializer:
            continue
        for kind in _types(field.annotation):
            if issubclass(kind, _SECRETS):
                yield name
            elif issubclass(kind, BaseModel):
                yield from (f"{name}.{path}" for path in _paths(kind, seen))


def _types(annotation: Any) -> Iterator[type[Any]]:
    """All classes in an annotation, at any depth."""
    for each in (annotation, get_origin(annotation)):
        if isinstance(each, type):
            yield each
    for argument in get_args(annotation):
        yield from _types(argument)
