"""A message on its way to RabbitMQ, and how it is written as frames.

All headers of a message must fit into one frame, 128 KiB unless the operator chose otherwise. A new
message that does not fit is refused, so that its publisher hears of it. A message that was already
delivered cannot be refused any more: what is noted on it may be what makes it too large, and a
message that could be neither retried nor dead-lettered would return to the front of its queue for
ever. So what `may_be_cut` of a parcel is cut where it is too large or cannot be written in AMQP:
foreign headers before the message's attributes, the largest first; of a dead letter also its data,
where the broker takes no message of that size any more. The header CUT says what was cut. Pure; no
connection here.

For example, a message that came with a header of 130,300 bytes becomes a dead letter whose reason
and error need 9 KB: the header keeps its first 256 bytes, and everything else is as it came.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pamqp import encode
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from eventmesh.transports.rabbitmq.topology import (
    CUT,
    ERROR,
    HEADER_PREFIX,
    REASON,
    beginning,
    copied,
)
from eventmesh.wire.cloudevents import ACCEPTED_PREFIXES, to_headers
from eventmesh.wire.envelope import Envelope

FRAME_OVERHEAD = 8
UNLIMITED_FRAME = 2**31 - 1
"""What stands for RabbitMQ's `frame_max = 0`, no limit; a length in a frame has 32 bits."""

UNWRITABLE = (ValueError, TypeError, OverflowError, LookupError, struct.error, RecursionError)
"""What the client library raises for a message that it cannot encode; nothing of it was sent."""

DEFAULT_FRAME = 128 * 1024
_OTHER_PROPERTIES = FRAME_OVERHEAD + 10 * 256
"""Bytes that all properties beside the headers take at most."""

KEPT_BYTES = 256
"""What is left of the text of a header that is cut."""

MOST_NAME_BYTES = 128
"""Of a header: the client library cuts longer names."""

_NEVER_CUT = 3
_NOTE_BYTES = 600
_NAMED_IN_NOTE = 4
_FIXED_BYTES = 14 + 4
"""Of a content header: its beginning, and the length of the table of headers."""

_PROPERTIES = (
    *("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id"),
    *("reply_to", "message_id", "timestamp", "message_type", "app_id"),
)
_MAX_SIZE = re.compile(r"max size\D*(\d+)")


Cut = Literal["nothing", "headers", "everything"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message to publish. Where it cannot be kept whole, it is refused, or is kept without what
    `may_be_cut`."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Basic.Properties
    may_be_cut: Cut = "nothing"


def properties_of(envelope: Envelope) -> Basic.Properties:
    """The properties of a new message."""
    return Basic.Properties(
        content_type=envelope.attributes.get("datacontenttype"),
        headers=dict(to_headers(envelope)),
        delivery_mode=2,
        message_id=envelope.id,
    )


def again(
    came: Basic.Properties,
    body: bytes,
    exchange: str,
    routing_key: str,
    headers: dict[str, Any] | None = None,
    *,
    may_be_cut: Cut = "headers",
) -> Parcel:
    """The message as it came, to be published again. Its expiry is left out, or a dead letter
    would vanish, and its user, which the broker would compare with ours."""
    properties = Basic.Properties(
        content_type=came.content_type,
        content_encoding=came.content_encoding,
        headers=copied(came.headers) if headers is None else headers,
        delivery_mode=2,
        priority=came.priority,
        correlation_id=came.correlation_id,
        reply_to=came.reply_to,
        message_id=came.message_id,
        timestamp=came.timestamp,
        message_type=came.message_type,
        app_id=came.app_id,
    )
    return Parcel(exchange, routing_key, body, properties, may_be_cut)


def frames_of(parcel: Parcel, channel: int, frame_max: int) -> bytes:
    """The parcel as it goes over the wire on this channel; one of UNWRITABLE where AMQP has no
    words for it, which does not happen to one whose headers may be cut. Mandatory: what no queue
    takes comes back."""
    if len(parcel.routing_key.encode()) > 255:
        raise ValueError("its routing key is longer than 255 bytes")
    body, most = parcel.body, (frame_max or UNLIMITED_FRAME) - FRAME_OVERHEAD
    publish = Basic.Publish(
        exchange=parcel.exchange, routing_key=parcel.routing_key, mandatory=True
    )
    try:
        header = _header(parcel.properties, len(body), channel, most)
    except UNWRITABLE:
        if parcel.may_be_cut == "nothing":
            raise
        header = _header(cut_to_fit(parcel.properties, most), len(body), channel, most)
    parts = [marshal(publish, channel), header]
    parts += [
        marshal(ContentBody(body[start : start + most]), channel)
        for start in range(0, len(body), most)
    ]
    return b"".join(parts)


def _header(properties: Basic.Properties, body_size: int, channel: int, most: int) -> bytes:
    """The frame of the content header; one of UNWRITABLE where it would be longer than `most`."""
    header = marshal(ContentHeader(body_size=body_size, properties=properties), channel)
    if len(header) - FRAME_OVERHEAD > most:
        raise ValueError(f"its headers are longer than the {most} bytes of a frame")
    return header


def cut_to_fit(properties: Basic.Properties, most: int) -> Basic.Properties:
    """These properties as they can be written in a content header of `most` bytes, the same where
    they fit. A header that is cut keeps its beginning; where that is not enough, it is left out."""
    kept = {name: value for name in _PROPERTIES if (value := getattr(properties, name)) is not None}
    lost = [name for name, value in kept.items() if not _can_be_written(name, value)]
    for name in lost:
        del kept[name]
    headers = {}
    for name, value in (properties.headers or {}).items():
        short, writable = beginning(name, MOST_NAME_BYTES), _writable(value)
        if short != name or writable is not value:
            lost.append(f"header {_shown(name)}")
        headers[short] = writable
    room = most - _FIXED_BYTES - len(Basic.Properties(**kept).marshal())
    if lost or sum(map(_size, headers.items())) > room:
        lost += _cut(headers, room - _NOTE_BYTES)
        headers[CUT] = _note(lost)
    if sum(map(_size, headers.items())) > room:  # a frame so small that no text fits beside others
        kept = {"delivery_mode": 2}
    return Basic.Properties(**kept, headers=headers)


def cut_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """These headers as they fit beside all other properties into a frame of RabbitMQ's default
    size; with the header CUT where something was cut. For whoever does not publish parcels."""
    cut = cut_to_fit(Basic.Properties(headers=headers), DEFAULT_FRAME - _OTHER_PROPERTIES)
    return dict(cut.headers or {})


def _cut(headers: dict[str, Any], room: int) -> list[str]:
    """Cut these, in place, until all together take at most so many bytes; what was cut."""
    sizes = {name: _size((name, value)) for name, value in headers.items()}
    excess = sum(sizes.values()) - room
    steps = sorted(
        (rank, leave_out, -size, name)
        for name, size in sizes.items()
        for leave_out in (False, True)
        if (rank := _rank(name)) < _NEVER_CUT
    )
    lost: dict[str, None] = {}
    for _, leave_out, _, name in steps:
        if excess <= 0:
            break
        before, value = _size((name, headers[name])), headers.pop(name)
        if not leave_out:
            short = beginning(_text(value), KEPT_BYTES)
            headers[name] = short if _size((name, short)) < before else value
            before -= _size((name, headers[name]))
        if before:
            excess -= before
            lost[name] = None
    return [f"header {_shown(name)} ({sizes[name]:,} bytes)" for name in lost]


def _rank(name: str) -> int:
    """What is cut first has rank 0."""
    if name.startswith(ACCEPTED_PREFIXES):
        return 1
    if name in (ERROR, REASON):
        return 2
    return _NEVER_CUT if name.startswith(HEADER_PREFIX) else 0


def _note(lost: Iterable[str]) -> str:
    """What was cut, for people."""
    names = list(lost)
    others = len(names) - _NAMED_IN_NOTE
    shown = ", ".join(names[:_NAMED_IN_NOTE]) + (f" and {others:,} more" if others > 0 else "")
    return beginning(shown, _NOTE_BYTES - len(CUT) - 10)


def smaller(parcel: Parcel, why: str) -> Iterator[Parcel]:
    """The parcel in ever smaller forms, for a broker that refuses what it holds for this reason:
    without its properties, its body no longer than the reason allows; without its body; and with
    nothing of its own."""
    came: Mapping[str, Any] = parcel.properties.headers or {}
    noted = str(came.get(CUT, ""))
    size = len(parcel.body)
    allowed = int(found[1]) if (found := _MAX_SIZE.search(why)) else size
    note = f"{noted}{', ' if noted else ''}properties"
    for body, names, lost in (
        (parcel.body[:allowed], (*ACCEPTED_PREFIXES, HEADER_PREFIX), ""),
        (b"", (*ACCEPTED_PREFIXES, HEADER_PREFIX), ""),
        (b"", (HEADER_PREFIX,), " and all headers"),
    ):
        headers = {name: value for name, value in came.items() if name.startswith(names)}
        if len(body) < size:
            lost = f", data (the first {len(body):,} of {size:,} bytes are kept){lost}"
        headers[CUT] = beginning(note + lost, _NOTE_BYTES)
        properties = Basic.Properties(
            content_type=parcel.properties.content_type,
            headers=headers,
            delivery_mode=2,
            message_id=parcel.properties.message_id,
        )
        yield replace(parcel, body=body, properties=properties)


def _can_be_written(name: str, value: Any) -> bool:
    try:
        Basic.Properties(**{name: value}).marshal()
    except UNWRITABLE:
        return False
    return True


def _writable(value: Any) -> Any:
    """The value of a header, or its text where AMQP has no words for it."""
    try:
        encode.encode_table_value(value)
    except UNWRITABLE:
        return _text(value)
    return value


def _size(header: tuple[str, Any]) -> int:
    """The bytes of a header that can be written."""
    name, value = header
    return 1 + len(name.encode()) + len(encode.encode_table_value(value))


def _text(value: Any) -> str:
    match value:
        case str():
            return value.encode(errors="backslashreplace").decode()
        case bytes() | bytearray():
            return bytes(value[: 4 * KEPT_BYTES]).decode(errors="backslashreplace")
        case _:
            return repr(value).encode(errors="backslashreplace").decode()


def _shown(name: str) -> str:
    return beginning(name, 80)
