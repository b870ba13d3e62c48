"""The AsyncAPI 3 document of any services, made with FastStream's generator.

The generator gives each place where something is sent or received a channel of its own, and knows
payloads by the names of classes, of which two services may have different ones. So it is asked
about one place at a time, and what it says is put together by the names of the messages.
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

from eventmesh.compat.model_schemas import plain
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.service import Service

Action = Literal["send", "receive"]

_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service sends or receives a message; `name` tells it from all others. What is sent
    as an older version than the model's has that version's frozen schema, `written`."""

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
        """Whether it is here that the message's contract is made: where an event is sent by its
        owner, or a command received by its owner."""
        identity = self.model.__identity__
        decisive = "send" if identity.kind == "event" else "receive"
        return identity.owner == self.service and self.action == decisive


def document(
    services: Sequence[Service], *, title: str, version: str, description: str
) -> Specification:
    """What these services send and receive: a channel for each message, an operation for each
    place. The payload is that of the message's owner, if that is one of them, and else as each
    service knows it. Sorted, so that the same services give the same document."""
    parts = _Parts()
    for message, places in sorted(_by_message(services).items()):
        parts.add_channel(message, places)
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
    """What the document is put together from."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.messages: dict[str, Any] = {}
        self.schemas: dict[str, Any] = {}

    def add_channel(self, message: str, places: Sequence[Place]) -> None:
        """A message, with all places where it is sent or received."""
        decisive = [place for place in places if place.is_decisive][:1]
        named = {
            place.name: self._add_message(place, qualified=not decisive and _differ(places))
            for place in decisive or places
        }
        keys = sorted(set(named.values()))
        self.channels[message] = {
            "address": message,
            "title": message,
            "messages": {key: _ref("components", "messages", key) for key in keys},
        }
        for place in places:
            key = named.get(place.name) or named[decisive[0].name]
            self.operations[place.name] = {
                "action": place.action,
                "channel": _ref("channels", message),
                "title": place.name,
                "tags": [{"name": place.service}],
                "messages": [_ref("channels", message, "messages", key)],
            }

    def _add_message(self, place: Place, *, qualified: bool) -> str:
        """The message as this place knows it; returns its key."""
        identity = place.model.__identity__
        key = f"{identity.name}.v{place.version}" + (f".{place.service}" if qualified else "")
        generated = _generate(place)
        [message] = generated["components"]["messages"].values()
        self._add_schemas(generated["components"]["schemas"], message["payload"]["$ref"], key)
        doc = cleandoc(place.model.__doc__ or "")
        self.messages[key] = message | {
            "name": identity.name,
            "title": f"{place.model.__name__} v{place.version}",
            **({"description": doc} if doc else {}),
            "contentType": "application/json",
            "headers": _headers(place),
            "correlationId": {"location": "$message.header#/correlationid"},
            "payload": {"$ref": f"{_SCHEMAS}{key}"},
        }
        return key

    def _add_schemas(self, schemas: Mapping[str, Any], payload: str, key: str) -> None:
        """The payload's schema as `key`, and those within it by names that begin so."""
        names = {
            f"{_SCHEMAS}{name}": f"{_SCHEMAS}{key}"
            if payload == f"{_SCHEMAS}{name}"
            else f"{_SCHEMAS}{key}.{name}"
            for name in schemas
        }
        for name, schema in schemas.items():
            renamed = names[f"{_SCHEMAS}{name}"].removeprefix(_SCHEMAS)
            self.schemas[renamed] = _renamed(schema, names)


def _by_message(services: Sequence[Service]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for service in services:
        for place in _places(service):
            found.setdefault(place.message, []).append(place)
    return {name: sorted(places, key=lambda place: place.name) for name, places in found.items()}


def _places(service: Service) -> Iterator[Place]:
    for model in service.registry.published():
        version = service.registry.written(model)
        own = version == model.__identity__.version
        written = None if own else _frozen(service, model, version)
        name = f"{service.name}.send.{model.__identity__.name}"
        yield Place(service.name, "send", model, name, version, written)
    for name, handler in service.handlers.items():
        for message, model in handler.models.items():
            name_here = f"{name}.receive.{message}"
            yield Place(service.name, "receive", model, name_here, model.__identity__.version)


def _frozen(service: Service, model: type[Message], version: int) -> Mapping[str, Any]:
    """What a version looks like that downcasters make."""
    name = model.__identity__.name
    revisions = read_locks(service.settings.schemas).of(name).get(version)
    if not revisions:
        raise UsageError(
            f"{name} is published as version {version}, of which {service.settings.schemas} has no "
            f"lock file to tell what it looks like: restore it from version control."
        )
    return {"title": model.__name__, **plain(revisions[-1].writer)}


def _differ(places: Sequence[Place]) -> bool:
    """Whether services know one message by different models."""
    return len({place.model for place in places}) > 1


def _generate(place: Place) -> dict[str, Any]:
    """FastStream's document of an app that does nothing but this."""
    broker = RabbitBroker()
    if place.action == "send":
        broker.publisher(place.message, schema=_as_written(place))
    else:
        broker.subscriber(place.message)(_handler_of(place.model))
    generated: dict[str, Any] = AsyncAPI(broker).to_specification().to_jsonable()
    return generated


def _handler_of(model: type[Message]) -> Callable[..., Any]:
    async def handle(message: Any) -> None: ...

    handle.__annotations__ = {"message": model, "return": None}
    return handle


def _as_written(place: Place) -> type[BaseModel]:
    """A model whose schema is that of what is written there: the generator asks for the schema of
    what is read, in which a field with a default may be missing."""

    class Written(BaseModel):
        @classmethod
        def model_json_schema(cls, *_: Any, **__: Any) -> dict[str, Any]:
            return dict(place.written or place.model.model_json_schema(mode="serialization"))

    return Written


def _headers(place: Place) -> dict[str, Any]:
    """The CloudEvents attributes that a reader can count on."""
    name = place.model.__identity__.name
    text = {"type": "string"}
    known = {
        "specversion": {"const": "1.0"},
        "type": {"const": name},
        "dataschema": {"const": f"urn:eventmesh:{name}:{place.version}"},
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
    """The schema with these references changed."""
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
