"""Floats that JSON cannot express: infinity and NaN.

The fields of a message do not take them. A model, dataclass or generic inside it has its own
configuration, and a value may be set after it was validated. Pydantic writes such a float as null.
That is read back where the field may be null, and makes a dead letter of the message where it may
not.

In the data, that null looks like any other, and validating the data to find it costs as much as
writing it. So a message that has floats is written by a serializer that writes them as NaN and
Infinity. If neither is in the data, it is what pydantic would have written, and nothing was lost.
Otherwise pydantic writes the message, and the data is validated. So it is, too, where a function or
a subclass decides what is written, because its result may bring its own serializer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, SchemaSerializer

_NOT_SCHEMAS = {"metadata", "config", "cls", "default"}
_HAVE_CONFIG = ("model", "dataclass", "typed-dict")


def write_json(message: BaseModel) -> tuple[bytes, list[str]]:
    """The message as JSON, by alias, and the paths of floats that are null there and cannot be read
    as such.

    PydanticSerializationError if a value is not JSON.
    """
    model = type(message)
    serializer = _serializer_with_constants(model)
    if serializer is not None:
        try:
            # A value of a wrong type would be written by its own serializer, with a warning.
            data = serializer.to_json(message, by_alias=True, warnings="error")
        except PydanticSerializationError:
            pass  # below, pydantic warns of a wrong type, and raises this again for anything else
        else:
            if b"NaN" not in data and b"Infinity" not in data:
                return data, []
    data = message.model_dump_json(by_alias=True).encode()
    if b"null" not in data or not _has_float(model):
        return data, []
    try:
        model.model_validate_json(data)
    except ValidationError as error:
        return data, [
            ".".join(map(str, problem["loc"]))
            for problem in error.errors(include_url=False, include_context=False)
            if problem["type"] == "float_type" and problem["input"] is None
        ]
    return data, []


@lru_cache(maxsize=1024)
def _has_float(model: type[BaseModel]) -> bool:
    return any(part["type"] == "float" for part in _parts(model.__pydantic_core_schema__))


@lru_cache(maxsize=1024)
def _serializer_with_constants(model: type[BaseModel]) -> SchemaSerializer | None:
    """Writes the model as pydantic does, but floats as NaN and Infinity. None if the model has no
    floats, or if more than its schema decides what is written."""
    if not _has_float(model) or model.model_dump_json is not BaseModel.model_dump_json:
        return None
    schema = _with_constants(model.__pydantic_core_schema__)
    config: Any = None
    for part in _parts(schema):
        if part["type"] == "model" and part["cls"] is model:
            config = part["config"]
        if (
            not _is_written_by_schema(part.get("serialization"))
            or (part["type"] in _HAVE_CONFIG and part["config"].get("polymorphic_serialization"))
            or part["type"] == "generator"  # it can be written only once
        ):
            return None
    # Prebuilt, the models inside would be written by their own serializers, with null.
    return SchemaSerializer(schema, config, _use_prebuilt=False)


def _is_written_by_schema(serialization: dict[str, Any] | None) -> bool:
    if serialization is None or serialization["type"] == "to-string":
        return True
    # Pydantic's own functions, such as that of a Sequence, only pass on what the schema writes.
    module: str | None = getattr(serialization.get("function"), "__module__", None)
    return module is not None and module.startswith("pydantic.")


def _with_constants(part: Any) -> Any:
    """A copy of a pydantic schema, by which floats are written as NaN and Infinity, not as null."""
    if isinstance(part, list | tuple):
        return type(part)(map(_with_constants, part))
    if not isinstance(part, dict):
        return part
    copy = dict(part)
    for name in _schemas_in(part):
        copy[name] = _with_constants(part[name])
    if _has_type(part) and part["type"] in _HAVE_CONFIG:
        config = part.get("config") or {}
        if config.get("ser_json_inf_nan", "null") == "null":
            config = {**config, "ser_json_inf_nan": "constants"}
        copy["config"] = config
    return copy


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A pydantic schema and the schemas in it, at any depth."""
    ahead = [schema]
    while ahead:
        part = ahead.pop()
        if isinstance(part, dict):
            if _has_type(part):
                yield part
            ahead += [part[name] for name in _schemas_in(part)]
        elif isinstance(part, list | tuple):
            ahead += part


def _schemas_in(part: dict[str, Any]) -> list[str]:
    return [name for name in part if name not in _NOT_SCHEMAS or not _has_type(part)]


def _has_type(part: dict[str, Any]) -> bool:
    # Otherwise it has the fields of a model by name, of which one may be called "type", too.
    return isinstance(part.get("type"), str)
