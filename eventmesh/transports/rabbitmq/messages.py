"""A message that is about to be published to RabbitMQ, and its encoding as AMQP frames.

All headers of a message must fit into one frame, which is 128 KiB unless the operator configured
another size. A new message that does not fit is rejected, so that its publisher learns of it. A
message that was delivered cannot be rejected any more: if it could be neither retried nor
dead-lettered, it would return to the front of its queue again and again. `may_truncate` says how
much of such a copy may be left out; see `truncation`. This module is pure; it has no connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pamqp.commands import Basic

from eventmesh.transports.rabbitmq.encoding import body_frame, header_frame, publish_frame
from eventmesh.transports.rabbitmq.headers import application_headers, routing_headers
from eventmesh.transports.rabbitmq.truncation import (
    ENCODING_ERRORS,
    FRAME_OVERHEAD,
    fit_properties,
)
from eventmesh.wire.cloudevents import from_headers, to_headers
from eventmesh.wire.envelope import Envelope

UNLIMITED_FRAME = 2**31 - 1
"""Stands for RabbitMQ's `frame_max = 0`, no limit. The length in a frame has 32 bits."""

Truncatable = Literal["nothing", "headers", "everything"]


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to publish. If it cannot be written or stored whole, it is rejected, or stored
    without what `may_truncate` names."""

    exchange: str
    routing_key: str
    body: bytes
    properties: Basic.Properties
    may_truncate: Truncatable = "nothing"


def new_message(exchange: str, envelope: Envelope) -> OutgoingMessage:
    """An envelope that is published for the first time."""
    properties = Basic.Properties(
        content_type=envelope.attributes.get("datacontenttype"),
        headers=to_headers(envelope) | routing_headers(envelope.key),
        delivery_mode=2,
        message_id=envelope.id,
    )
    return OutgoingMessage(exchange, envelope.name, envelope.data, properties)


def copy_of(
    original: Basic.Properties,
    body: bytes,
    exchange: str,
    routing_key: str,
    headers: Mapping[str, Any] | None = None,
    *,
    may_truncate: Truncatable = "headers",
) -> OutgoingMessage:
    """A copy of a delivered message, with these headers or the application's own.

    The expiry is left out, or a dead letter would vanish, and so is the user, which RabbitMQ would
    compare with ours.
    """
    properties = Basic.Properties(
        content_type=original.content_type,
        content_encoding=original.content_encoding,
        headers=application_headers(original.headers) if headers is None else dict(headers),
        delivery_mode=2,
        priority=original.priority,
        correlation_id=original.correlation_id,
        reply_to=original.reply_to,
        message_id=original.message_id,
        timestamp=original.timestamp,
        message_type=original.message_type,
        app_id=original.app_id,
    )
    return OutgoingMessage(exchange, routing_key, body, properties, may_truncate)


def rerouted(original: Basic.Properties, body: bytes, exchange: str, name: str) -> OutgoingMessage:
    """A copy of a delivered message that is published once more as if it were new."""
    key = from_headers(original.headers or {}, None, b"").key
    headers = application_headers(original.headers) | routing_headers(key)
    return copy_of(original, body, exchange, name, headers)


def encode(message: OutgoingMessage, channel: int, frame_max: int) -> bytes:
    """The frames that publish the message on this channel.

    Raises one of ENCODING_ERRORS if AMQP cannot express the message, which does not happen if its
    headers may be truncated. The message is mandatory: RabbitMQ returns it if it cannot route it.
    """
    if len(message.routing_key.encode()) > 255:
        raise ValueError("its routing key is longer than 255 bytes")
    body, max_bytes = message.body, (frame_max or UNLIMITED_FRAME) - FRAME_OVERHEAD
    publish = publish_frame(message.exchange, message.routing_key, channel)
    try:
        header = _encode_header(message.properties, len(body), channel, max_bytes)
    except ENCODING_ERRORS:
        if message.may_truncate == "nothing":
            raise
        fitting = fit_properties(message.properties, max_bytes)
        header = _encode_header(fitting, len(body), channel, max_bytes)
    parts = [
        body_frame(body[start : start + max_bytes], channel)
        for start in range(0, len(body), max_bytes)
    ]
    return b"".join((publish, header, *parts))


def _encode_header(
    properties: Basic.Properties, body_size: int, channel: int, max_bytes: int
) -> bytes:
    header = header_frame(properties, body_size, channel)
    if len(header) - FRAME_OVERHEAD > max_bytes:
        raise ValueError(f"its headers are longer than the {max_bytes} bytes of a frame")
    return header
