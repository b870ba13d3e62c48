"""Shortening a message that RabbitMQ would otherwise reject.

What EventMesh notes on a message that failed, its reason and error, may be what makes its headers
too large for a frame. Then headers are shortened: the application's before the CloudEvents
attributes, these before reason and error, and the largest first. A header that is shortened keeps
its first 256 bytes; if that is not enough, it is left out. The header TRUNCATED names what is
missing. If the broker rejects a dead letter for its size, `smaller_forms` also shortens its body.

For example, a message came with a header of 130,300 bytes, and its reason and error need 9 KB. The
dead letter holds the first 256 bytes of that header, and everything else as it came.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pamqp import encode
from pamqp.commands import Basic

from eventmesh.transports.rabbitmq.headers import ERROR, HEADER_PREFIX, REASON, TRUNCATED
from eventmesh.transports.rabbitmq.text import keep_start
from eventmesh.wire.cloudevents import ACCEPTED_PREFIXES

FRAME_OVERHEAD = 8

ENCODING_ERRORS = (
    *(ValueError, TypeError, OverflowError, LookupError),
    *(struct.error, RecursionError),
)
"""What pamqp raises for a message that it cannot encode; nothing of it was sent."""

KEPT_BYTES = 256
"""What is left of the text of a header that is shortened."""

MAX_NAME_BYTES = 128
"""Of a header: pamqp cuts longer names, so that two headers could become one."""

_NEVER_TRUNCATED = 3
_NOTE_BYTES = 600
_NAMES_IN_NOTE = 4
_FIXED_BYTES = 14 + 4
"""Of a content header: its beginning, and the length of the table of headers."""

_PROPERTIES = (
    *("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id"),
    *("reply_to", "message_id", "timestamp", "message_type", "app_id"),
)
_MAX_SIZE = re.compile(r"max size\D*(\d+)")


def fit_properties(properties: Basic.Properties, max_bytes: int) -> Basic.Properties:
    """These properties so that they can be written in a content header of `max_bytes`; unchanged
    if they fit."""
    kept = {name: value for name in _PROPERTIES if (value := getattr(properties, name)) is not None}
    lost = [name for name, value in kept.items() if not _can_be_encoded(name, value)]
    for name in lost:
        del kept[name]
    headers = {}
    for name, value in (properties.headers or {}).items():
        short, encodable = keep_start(name, MAX_NAME_BYTES), _encodable(value)
        if short != name or encodable is not value:
            lost.append(f"header {_shown(name)}")
        headers[short] = encodable
    room = max_bytes - _FIXED_BYTES - len(Basic.Properties(**kept).marshal())
    if lost or sum(map(_size, headers.items())) > room:
        lost += _truncate_headers(headers, room - _NOTE_BYTES)
        headers[TRUNCATED] = _note(lost)
    if sum(map(_size, headers.items())) > room:  # the frame is too small for any other property
        kept = {"delivery_mode": 2}
    return Basic.Properties(**kept, headers=headers)


def smaller_forms(
    properties: Basic.Properties, body: bytes, reason: str
) -> Iterator[tuple[Basic.Properties, bytes]]:
    """Ever smaller forms of a message, as properties and body, for a broker that rejects it for
    this reason: with the attributes and a body no longer than the reason allows; without a body;
    and with EventMesh's own headers only."""
    headers: Mapping[str, Any] = properties.headers or {}
    noted = str(headers.get(TRUNCATED, ""))
    size = len(body)
    allowed = int(found[1]) if (found := _MAX_SIZE.search(reason)) else size
    note = f"{noted}{', ' if noted else ''}properties"
    for kept_body, kept_names, lost in (
        (body[:allowed], (*ACCEPTED_PREFIXES, HEADER_PREFIX), ""),
        (b"", (*ACCEPTED_PREFIXES, HEADER_PREFIX), ""),
        (b"", (HEADER_PREFIX,), " and all headers"),
    ):
        kept = {name: value for name, value in headers.items() if name.startswith(kept_names)}
        if len(kept_body) < size:
            lost = f", data (the first {len(kept_body):,} of {size:,} bytes are kept){lost}"
        kept[TRUNCATED] = keep_start(note + lost, _NOTE_BYTES)
        smaller = Basic.Properties(
            content_type=properties.content_type,
            headers=kept,
            delivery_mode=2,
            message_id=properties.message_id,
        )
        yield smaller, kept_body


def _truncate_headers(headers: dict[str, Any], room: int) -> list[str]:
    """Shorten headers in place until all together take at most `room` bytes; returns what was
    shortened, for the note."""
    sizes = {name: _size((name, value)) for name, value in headers.items()}
    excess = sum(sizes.values()) - room
    steps = sorted(
        (rank, leave_out, -size, name)
        for name, size in sizes.items()
        for leave_out in (False, True)
        if (rank := _rank(name)) < _NEVER_TRUNCATED
    )
    lost: dict[str, None] = {}
    for _, leave_out, _, name in steps:
        if excess <= 0:
            break
        saved, value = _size((name, headers[name])), headers.pop(name)
        if not leave_out:
            short = keep_start(_text(value), KEPT_BYTES)
            headers[name] = short if _size((name, short)) < saved else value
            saved -= _size((name, headers[name]))
        if saved:
            excess -= saved
            lost[name] = None
    return [f"header {_shown(name)} ({sizes[name]:,} bytes)" for name in lost]


def _rank(name: str) -> int:
    """Headers of rank 0 are shortened first."""
    if name.startswith(ACCEPTED_PREFIXES):
        return 1
    if name in (ERROR, REASON):
        return 2
    return _NEVER_TRUNCATED if name.startswith(HEADER_PREFIX) else 0


def _note(lost: Iterable[str]) -> str:
    names = list(lost)
    others = len(names) - _NAMES_IN_NOTE
    shown = ", ".join(names[:_NAMES_IN_NOTE]) + (f" and {others:,} more" if others > 0 else "")
    return keep_start(shown, _NOTE_BYTES - len(TRUNCATED) - 10)


def _can_be_encoded(name: str, value: Any) -> bool:
    try:
        Basic.Properties(**{name: value}).marshal()
    except ENCODING_ERRORS:
        return False
    return True


def _encodable(value: Any) -> Any:
    """The value of a header, or its text if pamqp cannot encode it."""
    try:
        encode.encode_table_value(value)
    except ENCODING_ERRORS:
        return _text(value)
    return value


def _size(header: tuple[str, Any]) -> int:
    """The bytes of a header that can be encoded."""
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
    return keep_start(name, 80)
