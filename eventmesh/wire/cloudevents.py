"""How an envelope is encoded on each broker: Redis fields, AMQP headers, or packed bytes.

Decoding never fails, so that every message can be dead-lettered instead of being lost. Unknown
fields and headers are kept as they are; bytes that contain no envelope become `Unreadable`, with
the reason. Whether an envelope is complete is checked later, by `check_envelope`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import orjson

from eventmesh.wire.envelope import Envelope

HEADER_PREFIX = "cloudEvents_"
"""The prefix of attributes in AMQP headers that we write (CloudEvents AMQP binding 1.0.2)."""

ACCEPTED_PREFIXES = ("cloudEvents_", "cloudEvents:", "ce-")
_DATA_FIELD = "data"


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that contain no envelope, and why."""

    content: bytes
    reason: str


def to_fields(envelope: Envelope) -> dict[str, str | bytes]:
    """The fields of a Redis stream entry: the attributes by their bare names, and `data`."""
    return {**envelope.attributes, _DATA_FIELD: envelope.data}


def from_fields(fields: Iterable[tuple[bytes, bytes]]) -> Envelope:
    """The envelope in a Redis stream entry."""
    raw = dict(fields)
    data = raw.pop(b"data", b"")
    try:
        attributes = {_name(name): value.decode() for name, value in raw.items()}
    except UnicodeDecodeError:
        attributes = {_name(name): _text(value) for name, value in raw.items()}
    return Envelope(attributes, data)


def to_headers(envelope: Envelope) -> dict[str, str]:
    """The AMQP headers of binary mode; `datacontenttype` is not among them, because it is the
    message's content type."""
    return {
        HEADER_PREFIX + name: value
        for name, value in envelope.attributes.items()
        if name != "datacontenttype"
    }


def from_headers(headers: Mapping[str, object], content_type: str | None, data: bytes) -> Envelope:
    """The envelope in an AMQP message of binary mode; other headers are ignored."""
    attributes = {}
    for header, value in headers.items():
        name = _attribute(header)
        if name is None:
            continue
        if type(value) is str:  # as nearly all are
            attributes[name] = value
        else:
            attributes[name] = _time(value) if name == "time" else _value(value)
    if content_type:
        attributes["datacontenttype"] = content_type
    return Envelope(attributes, data)


def pack(envelope: Envelope) -> bytes:
    """The envelope as bytes: attributes as JSON, a line feed (which JSON escapes), the data."""
    return orjson.dumps(dict(envelope.attributes)) + b"\n" + envelope.data


def unpack(parcel: bytes) -> Envelope | Unreadable:
    """The envelope in bytes that `pack` made."""
    head, _, data = parcel.partition(b"\n")
    attributes = parse_attributes(head)
    if isinstance(attributes, str):
        return Unreadable(parcel, attributes)
    return Envelope(attributes, data)


def parse_attributes(head: bytes | str) -> dict[str, str] | str:
    """The attributes in a JSON object whose values are strings; or a text that says why it is not
    one."""
    try:
        attributes = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        return f"its attributes are not JSON: {error}"
    if not isinstance(attributes, dict):
        return "its attributes are JSON, but not an object"
    for name, value in attributes.items():
        if not isinstance(value, str):
            return f"its attribute {name!r} is not a text"
    return attributes


# Every message has the same few names. Bounded, because anybody can send others.
@lru_cache(maxsize=1024)
def _attribute(header: str) -> str | None:
    """The name of the attribute in a header; None if the header is not an attribute."""
    for prefix in ACCEPTED_PREFIXES:
        if header.startswith(prefix):
            return header[len(prefix) :]
    return None


@lru_cache(maxsize=1024)
def _name(raw: bytes) -> str:
    return _text(raw)


def _value(value: object) -> str:
    match value:
        case str():
            return value
        case bytes():
            return _text(value)
        case bool():
            return str(value).lower()
        case datetime():
            utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            return utc.isoformat().replace("+00:00", "Z")
        case _:
            return str(value)


def _time(value: object) -> str:
    """A time as text; the binding also allows AMQP's own timestamp, milliseconds since 1970."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            value = datetime.fromtimestamp(value / 1000, UTC)
        except (ValueError, OverflowError, OSError):
            return str(value)
    return _value(value)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode(errors="backslashreplace")
