"""The envelope of a message: CloudEvents attributes and encoded data.

`seal` makes it from a message, `open_envelope` reads the message back: it upcasts older versions
and validates the data. Attributes are one mapping of strings, as every broker transports them;
unknown extensions are kept.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import itemgetter

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from eventmesh.clock import Clock
from eventmesh.contracts.any_fields import unread_values
from eventmesh.contracts.message import Message, key_of
from eventmesh.contracts.non_finite import write_json
from eventmesh.contracts.versions import (
    describe_invalid_data,
    describe_unreadable_version,
    downcast,
    readable_versions,
    upcast,
)
from eventmesh.error_text import type_and_message
from eventmesh.errors import MessageTooLarge, UnreadableMessage, UsageError
from eventmesh.storable import storable

DEFAULT_MAX_BYTES = 1024 * 1024
"""The largest data of a message, in bytes, unless a setting says otherwise."""

MAX_ATTRIBUTE_BYTES = 255
"""The longest attribute in bytes of UTF-8, which is the limit of a short string in AMQP 0-9-1."""

TRACE_CONTEXT = ("traceparent", "tracestate")
"""The attributes that say in which span of which trace a message was created (CloudEvents
Distributed Tracing, W3C Trace Context)."""

COPIED_TO_EFFECTS = ("sagaid", "sagastep", *TRACE_CONTEXT)
"""Attributes that are copied from a message to those published while handling it."""

Judge = Callable[[type[Message], int], str | None]
"""Decides on a version from which no upcasters lead to the model: why the model cannot read it as
it is, or None if it can."""

_SHOWN_KEY = 100
"""How many characters of a key an error shows."""

_REQUIRED = ("specversion", "id", "source", "type")
_required_of = itemgetter(*_REQUIRED)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
UNIQUE_ID = re.compile(rf"{_UUID.pattern}|sha256:[0-9a-f]{{64}}")
"""The forms of `Envelope.unique_id`, and so of the id of a saga."""

_DATASCHEMA = re.compile(r"urn:eventmesh:([^:]+):([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message in transit. `attributes` is never changed."""

    attributes: Mapping[str, str]
    data: bytes

    @property
    def id(self) -> str:
        """The message's id, which retries and replays keep; empty if it has none."""
        return self.attributes.get("id", "")

    @property
    def unique_id(self) -> str:
        """An id that no other message has: the id itself if it is a UUID, else a hash of source and
        id, because CloudEvents makes only the two together unique."""
        if _UUID.fullmatch(self.id):
            return self.id
        both = f"{self.attributes.get('source', '')}\n{self.id}"
        return "sha256:" + hashlib.sha256(both.encode()).hexdigest()

    @property
    def name(self) -> str:
        """The message's name, in CloudEvents its `type`; empty if it has none."""
        return self.attributes.get("type", "")

    @property
    def key(self) -> str | None:
        """Messages with the same key stay in order; None for a message without order."""
        return self.attributes.get("partitionkey") or self.attributes.get("subject") or None

    @property
    def correlation_id(self) -> str:
        """The id of the first message in this chain of causes."""
        return self.attributes.get("correlationid", "") or self.id

    @property
    def time(self) -> datetime | None:
        """When the message was made; None without a time in RFC 3339."""
        try:
            return datetime.fromisoformat(self.attributes["time"])
        except (KeyError, ValueError):
            return None


def part_of(key: str | None, message_id: str, parts: int) -> int:
    """The number of the part, out of `parts`, to which a key belongs, the same in every process.
    Messages without a key are spread by their ids."""
    return zlib.crc32((key if key is not None else message_id).encode()) % parts


def seal(
    message: Message,
    *,
    source: str,
    clock: Clock,
    cause: Envelope | None = None,
    extensions: Mapping[str, str] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    version: int | None = None,
) -> Envelope:
    """The envelope of a new message from the service `source`, published while handling `cause`.
    The data is written in `version`, or else in the model's own. `extensions` are further
    attributes, or others than these; an empty one is left out.

    MessageTooLarge if the data has more than `max_bytes`; UsageError if an attribute is too long,
    the key has a NUL, a value is not JSON that can be read, or a downcaster fails.
    """
    identity = message.__identity__
    version = version or identity.version
    message_id = clock.new_id()
    attributes = {
        "specversion": "1.0",
        "id": message_id,
        "source": f"/{source}",
        "type": identity.name,
        "dataschema": f"urn:eventmesh:{identity.name}:{version}",
        "datacontenttype": "application/json",
        "time": clock.now().isoformat().replace("+00:00", "Z"),
        "correlationid": message_id,
    }
    key = key_of(message)
    if key is not None:
        if "\0" in key:
            raise UsageError(
                f"{identity.name} has a NUL in its key {key[:_SHOWN_KEY]!r}, which not every "
                f"database can store. Choose a key without it."
            )
        attributes["subject"] = attributes["partitionkey"] = key
    if cause is not None:
        # A NUL in JSON makes PostgreSQL fail on every row of the outbox that holds it. Values of a
        # foreign message that are too long are dropped: the handler cannot help it, and
        # W3C Trace Context allows dropping a tracestate.
        copied = [(name, cause.attributes.get(name)) for name in COPIED_TO_EFFECTS]
        copied += ("correlationid", cause.correlation_id), ("causationid", cause.id)
        for name, value in copied:
            if value and _fits(stored := storable(value)):
                attributes[name] = stored
    if extensions is not None:
        for name, value in extensions.items():
            if value:
                attributes[name] = storable(value)
            else:
                attributes.pop(name, None)
    envelope = Envelope(attributes, _write(message, version))
    check_size(envelope, max_bytes)
    return envelope


def _write(message: Message, version: int) -> bytes:
    """The data with every field, under the names in the frozen schema."""
    model = type(message)
    try:
        data, lost = write_json(message)
    except PydanticSerializationError as error:
        raise UsageError(
            f"A value of {model.__identity__.name} cannot be written as JSON: {error}."
        ) from error
    if lost:
        raise UsageError(
            f"{', '.join(lost)} of {model.__identity__.name} is infinite or not a number, which "
            f"JSON cannot express: it would be written as null, and no subscriber reads that as a "
            f"float. Check the value, or declare the field as float | None."
        )
    if unread := unread_values(message, data):
        raise UsageError(
            f"Nobody could read {model.__identity__.name}: {unread}. Check the value, or declare "
            f"its field with the type that it has."
        )
    if version == model.__identity__.version:
        return data
    try:
        return to_json(downcast(model, from_json(data), version))
    except PydanticSerializationError as error:
        raise UsageError(
            f"What the downcasters of {model.__identity__} made of it as version {version} is not "
            f"JSON: {error}."
        ) from error


def check_size(envelope: Envelope, max_bytes: int) -> None:
    """MessageTooLarge or UsageError if some broker could not store this envelope."""
    if len(envelope.data) > max_bytes:
        key = envelope.key or ""
        which = f" with key {key[:_SHOWN_KEY]!r}" if key else ""
        raise MessageTooLarge(
            f"{envelope.name}{which} has {len(envelope.data):,} bytes of data; "
            f"the limit is {max_bytes:,}. Put the bulk into a store and send its address, or raise "
            f"EVENTMESH_MAX_MESSAGE_BYTES for every service."
        )
    if max(map(len, envelope.attributes.values())) * 4 <= MAX_ATTRIBUTE_BYTES:
        return  # a character has at most 4 bytes, so most envelopes need no closer look
    for name, value in envelope.attributes.items():
        if not _fits(value):
            raise UsageError(
                f"The attribute {name!r} of {envelope.name} has {len(value.encode())} bytes; the "
                f"limit is {MAX_ATTRIBUTE_BYTES}. Choose a shorter key."
            )


def _fits(value: str) -> bool:
    # A character has at most 4 bytes, so most values need not be encoded.
    return len(value) * 4 <= MAX_ATTRIBUTE_BYTES or len(value.encode()) <= MAX_ATTRIBUTE_BYTES


def check_envelope(envelope: Envelope) -> None:
    """UnreadableMessage if required CloudEvents attributes are missing or of another version."""
    try:
        required = _required_of(envelope.attributes)
    except KeyError:
        required = ("",)
    if not all(required):
        missing = [name for name in _REQUIRED if not envelope.attributes.get(name)]
        raise UnreadableMessage(
            f"this is not a CloudEvents message: {', '.join(missing)} missing. Its publisher uses "
            f"neither EventMesh nor CloudEvents attributes."
        )
    if required[0] != "1.0":
        raise UnreadableMessage(f"CloudEvents version {required[0]!r} is unknown here: only 1.0.")


def version_of(envelope: Envelope) -> int:
    """The schema version of the data; UnreadableMessage if the envelope does not name it."""
    dataschema = envelope.attributes.get("dataschema", "")
    name, version = _parse_dataschema(dataschema)
    if version is None or name != envelope.name:
        raise UnreadableMessage(
            f"the attribute dataschema is {dataschema!r} and does not name a version of "
            f"{envelope.name}; urn:eventmesh:{envelope.name}:<version> was expected."
        )
    return version


def open_envelope(
    envelope: Envelope, model: type[Message], judge: Judge = describe_unreadable_version
) -> Message:
    """The message in the envelope, upcast to the model's version and validated. `judge` decides on
    versions without upcasters.

    UnreadableMessage, with a reason for people, if this can never succeed.
    """
    version = version_of(envelope)
    own = version == model.__identity__.version
    if not own and version not in readable_versions(model):
        if (reason := judge(model, version)) is not None:
            raise UnreadableMessage(reason)
        own = True
    try:
        if own:
            return model.model_validate_json(envelope.data)
        # Through JSON again, because a strict model accepts a date from JSON, but not from a str.
        return model.model_validate_json(to_json(upcast(model, _parse(envelope), version)))
    except ValidationError as error:
        raise UnreadableMessage(describe_invalid_data(model, error)) from error
    except (PydanticSerializationError, ArithmeticError, LookupError, TypeError) as error:
        # From what an upcaster returned, or raised by a user's validator.
        raise UnreadableMessage(
            f"the data could not be read as {model.__identity__}: {type_and_message(error)}"
        ) from error


@lru_cache(maxsize=1024)  # bounded, because anybody can send others
def _parse_dataschema(dataschema: str) -> tuple[str, int | None]:
    found = _DATASCHEMA.fullmatch(dataschema)
    return (found[1], int(found[2])) if found else ("", None)


def _parse(envelope: Envelope) -> dict[str, object]:
    try:
        data = from_json(envelope.data)
    except ValueError as error:
        raise UnreadableMessage(f"the data is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise UnreadableMessage("the data is JSON, but not an object")
    return data
