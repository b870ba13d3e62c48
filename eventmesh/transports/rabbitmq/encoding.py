"""The bytes of the AMQP frames that publish a message.

They are those that pamqp writes, of which a test makes sure. pamqp looks up the type of each
property by its name and tries each header's value against ten types, which takes more time than all
else that is done to publish a message. A message as we publish it needs none of that; what it does
not have is left to pamqp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any

from pamqp.commands import Basic
from pamqp.encode import encode_table_value, short_string
from pamqp.frame import marshal

_HEADER, _BODY = 2, 3
_FRAME = struct.Struct(">BHI")
_END = b"\xce"
_CONTENT = struct.Struct(">HHQ")
"""The class of the method, a weight that is always 0, and the size of the body."""

_PERSISTENT = 2
_FLAGS = struct.pack(
    ">H",
    sum(
        Basic.Properties.flags[name]
        for name in (
            "content_type",
            "headers",
            "delivery_mode",
            "message_id",
        )
    ),
)
_others = attrgetter(
    *("content_encoding", "priority", "correlation_id", "reply_to", "expiration"),
    *("timestamp", "message_type", "user_id", "app_id", "cluster_id"),
)
_NO_OTHERS = _others(Basic.Properties())

_LONG = struct.Struct(">I")
_TEXT = struct.Struct(">cI")
_LONGEST_NAME = 128
"""Bytes of a header's name; longer ones are cut."""


@lru_cache(maxsize=1024)  # once for each name of messages
def publish_frame(exchange: str, routing_key: str, channel: int) -> bytes:
    """The method basic.publish. It is mandatory: RabbitMQ returns what it cannot route."""
    publish = Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True)
    return marshal(publish, channel)


def header_frame(properties: Basic.Properties, body_size: int, channel: int) -> bytes:
    """The content header. Raises what pamqp raises for properties that cannot be written."""
    written = _as_we_publish(properties) or properties.marshal()
    payload = _CONTENT.pack(Basic.frame_id, 0, body_size) + written
    return _FRAME.pack(_HEADER, channel, len(payload)) + payload + _END


def body_frame(part: bytes, channel: int) -> bytes:
    """One frame of the body."""
    return _FRAME.pack(_BODY, channel, len(part)) + part + _END


def _as_we_publish(properties: Basic.Properties) -> bytes | None:
    """These properties; None if they are others than a new message has."""
    headers, message_id = properties.headers, properties.message_id
    if (
        not (properties.content_type and headers and message_id)
        or properties.delivery_mode != _PERSISTENT
        or _others(properties) != _NO_OTHERS
    ):
        return None
    parts = [_FLAGS, _short(properties.content_type), _table(headers)]
    return b"".join((*parts, bytes((_PERSISTENT,)), short_string(message_id)))


def _table(headers: Mapping[str, Any]) -> bytes:
    parts: list[bytes] = []
    for name, value in sorted(headers.items()):
        parts.append(_name(name))
        if type(value) is str:
            text = value.encode()
            parts += (_TEXT.pack(b"S", len(text)), text)
        elif name == "BCC" and type(value) is list and len(value) == 1 and type(value[0]) is str:
            parts.append(_list_of(value[0]))
        else:
            parts.append(encode_table_value(value))
    table = b"".join(parts)
    return _LONG.pack(len(table)) + table


@lru_cache(maxsize=1024)
def _name(name: str) -> bytes:
    """A header's name."""
    whole = name.encode()
    return _short(whole[:_LONGEST_NAME].decode(errors="ignore"))


@lru_cache(maxsize=1024)  # the routing keys of the buckets; other headers may be long
def _list_of(text: str) -> bytes:
    return encode_table_value([text])


@lru_cache(maxsize=1024)
def _short(text: str) -> bytes:
    return short_string(text)
