"""The AsyncAPI 3 document of any services, made with FastStream's generator.

The generator gives each publisher and subscriber a channel of its own, and names payloads after
their classes, although two services may have different classes of one name. So it is asked for one
operation at a time, and the documents are merged by the names of the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, Literal

from faststream.rabbit import RabbitBroker
from faststream.specification import AsyncAPI, Specification
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from pydantic import BaseModel

from eventmesh.compat.pydantic_models.schemas import plain
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.service import DeclaredService as Service

Action = Literal["send", "receive"]

_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Operation:
    """A service sends or receives a message. What is sent as an older version than the model's has
    that version's frozen schema, `written`."""

    service: str
    action: Action
    model: type[Message]
    name: str
    version: int
    written: Mapping[str, Any] | None = None

    @property
    def message(self) -> str:
        return self.model.__identity__.name

    @property
    def is_decisive(self) -> bool:
        """Whether its payload is the message's contract: an event sent by its owner, or a command
        received by its owner."""
        identity = self.model.__identity__
        decisive = "send" if identity.kind == "event" else "receive"
        return identity.owner == self.service and self.action == decisive


def document(
    services: Sequence[Service], *, title: str, version: str, description: str
) -> Specification:
    """What these services send and receive: a channel for each message, and an operation for each
    service that sends or receives it. The payload is that of the message's owner if that is one of
    them, and otherwise as each service knows it. Sorted, so that the same services always give the
    same document."""
    parts = _Parts()
    for message, operations in sorted(_by_message(services).items()):
        parts.add_channel(message, operations)
    return ApplicationSchema.model_validate(
        {
            "info": {"title": title, "version": version, "description": description},
            "asyncapi": "3.0.0",
            "defaultContentType": "application/json",
            "channels": parts.channels,
            "operations": dict(sorted(parts.operations.items())),
            "components": {
                "messages": dict(sorted(parts.messages.items())),
                "schemas": dict(sorted(parts.schemas.items())),
            },
        }
    )


class _Parts:
    """The parts of the merged document."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}
        self.schemas: dict[str, Any] = {}

    def add_channel(self, message: str, operations: Sequence[Operation]) -> None:
        """Add a message with all its operations."""
        decisive = [operation for operation in operations if operation.is_decisive][:1]
        named = {
            each.name: self._add_message(each, qualified=not decisive and _differ(operations))
            for each in decisive or operations
        }
        keys = sorted(set(named.values()))
        self.channels[message] = {
            "address": message,
            "title": message,
            "messages": {key: _ref("components", "messages", key) for key in keys},
        }
        for operation in operations:
            key = named.get(operation.name) or named[decisive[0].name]
            self.operations[operation.name] = {
                "action": operation.action,
                "channel": _ref("channels", message),
                "title": operation.name,
                "tags": [{"name": operation.service}],
                "messages": [_ref("channels", message, "messages", key)],
            }

    def _add_message(self, operation: Operation, *, qualified: bool) -> str:
        """Add the message as this operation knows it; returns its key."""
        identity = operation.model.__identity__
        key = f"{identity.name}.v{operation.version}"
        if qualified:
            key += f".{operation.service}"
        generated = _generate(operation)
        [message] = generated["components"]["messages"].values()
        self._add_schemas(generated["components"]["schemas"], message["payload"]["$ref"], key)
        doc = cleandoc(operation.model.__doc__ or "")
        self.messages[key] = message | {
            "name": identity.name,
            "title": f"{operation.model.__name__} v{operation.version}",
            **({"description": doc} if doc else {}),
            "contentType": "application/json",
            "headers": _headers(operation),
            "correlationId": {"location": "$message.header#/correlationid"},
            "payload": {"$ref": f"{_SCHEMAS}{key}"},
        }
        return key

    def _add_schemas(self, schemas: Mapping[str, Any], payload: str, key: str) -> None:
        """Add the payload's schema as `key`, and those within it by names that begin with it."""
        names = {
            f"{_SCHEMAS}{name}": f"{_SCHEMAS}{key}"
            if payload == f"{_SCHEMAS}{name}"
            else f"{_SCHEMAS}{key}.{name}"
            for name in schemas
        }
        for name, schema in schemas.items():
            renamed = names[f"{_SCHEMAS}{name}"].removeprefix(_SCHEMAS)
            self.schemas[renamed] = _renamed(schema, names)


def _by_message(services: Sequence[Service]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for service in services:
        for operation in _operations(service):
            found.setdefault(operation.message, []).append(operation)
    return {
        name: sorted(each, key=lambda operation: operation.name) for name, each in found.items()
    }


def _operations(service: Service) -> Iterator[Operation]:
    for model in service.registry.published():
        version = service.registry.written(model)
        own = version == model.__identity__.version
        written = None if own else _frozen(service, model, version)
        name = f"{service.name}.send.{model.__identity__.name}"
        yield Operation(service.name, "send", model, name, version, written)
    for name, handler in service.handlers.items():
        for message, model in handler.models.items():
            if model.__is_internal__:
                continue
            name_here = f"{name}.receive.{message}"
            yield Operation(service.name, "receive", model, name_here, model.__identity__.version)


def _frozen(service: Service, model: type[Message], version: int) -> Mapping[str, Any]:
    """The frozen schema of a version that downcasters produce."""
    name = model.__identity__.name
    revisions = read_locks(service.settings.schemas).of(name).get(version)
    if not revisions:
        raise UsageError(
            f"{name} is published as version {version}, of which {service.settings.schemas} has no "
            f"lock file that describes it: restore it from version control."
        )
    return {"title": model.__name__, **plain(revisions[-1].writer)}


def _differ(operations: Sequence[Operation]) -> bool:
    """Whether services have different models of one message."""
    return len({operation.model for operation in operations}) > 1


def _generate(operation: Operation) -> dict[str, Any]:
    """FastStream's document of an app with this operation only."""
    broker = RabbitBroker()
    if operation.action == "send":
        broker.publisher(operation.message, schema=_as_written(operation))
    else:
        broker.subscriber(operation.message)(_handler_of(operation.model))
    generated: dict[str, Any] = AsyncAPI(broker).to_specification().to_jsonable()
    return generated


def _handler_of(model: type[Message]) -> Callable[..., Any]:
    async def handle(message: Any) -> None: ...

    handle.__annotations__ = {"message": model, "return": None}
    return handle


def _as_written(operation: Operation) -> type[BaseModel]:
    """A model with the schema of what is written: the generator asks for the schema of what is
    read, in which a field with a default may be missing."""

    class Written(BaseModel):
        @classmethod
        def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
            own_version = operation.model.model_json_schema(mode="serialization")
            return dict(operation.written or own_version)

    return Written


def _headers(operation: Operation) -> dict[str, Any]:
    """The CloudEvents attributes that a reader can rely on."""
    name = operation.model.__identity__.name
    text = {"type": "string"}
    known = {
        "specversion": {"const": "1.0"},
        "type": {"const": name},
        "dataschema": {"const": f"urn:eventmesh:{name}:{operation.version}"},
    }
    free = ("id", "source", "time", "datacontenttype", "correlationid")
    return {
        "type": "object",
        "description": "CloudEvents 1.0 attributes: in AMQP, headers named cloudEvents_<name>; in "
        "Redis, fields of the stream entry beside the field data.",
        "properties": known | dict.fromkeys(free, text),
        "required": ["dataschema", "id", "source", "specversion", "type"],
    }


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": "#/" + "/".join(path)}


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema with references renamed."""
    if isinstance(schema, list):
        return [_renamed(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        keyword: names.get(value, value)
        if keyword == "$ref" and isinstance(value, str)
        else _renamed(value, names)
        for keyword, value in schema.items()
    }
