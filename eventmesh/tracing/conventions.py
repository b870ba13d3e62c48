"""Names and attributes by OpenTelemetry's semantic conventions for messaging, version 1.45.

Pure: mappings from what is known of a message to what a span or a metric says. The names are not
imported from OpenTelemetry's package of conventions, which only development needs; a test compares
them. What no convention has a name for begins with `eventmesh.`:

| attribute                         | on              | says                               |
|-----------------------------------|-----------------|------------------------------------|
| eventmesh.attempt                 | process         | 1 for the first delivery           |
| eventmesh.group.wait              | process         | seconds from receiving the message |
|                                   |                 | to the call of its handler         |
| eventmesh.outbox.time             | send            | seconds from creating the message  |
|                                   |                 | to publishing it, with its delay   |
| eventmesh.delay                   | create          | seconds by which it was delayed    |
| eventmesh.transaction.rolled_back | process         | true where another message, or the |
|                                   |                 | commit, undid what was done        |
| eventmesh.outcome                 | settle          | done, retried or dead              |
| eventmesh.saga.name, .id, .step   | create, process | the saga that sent the message, or |
|                                   |                 | that it answers, and its label     |

What is said of one message of several is on the link to that message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from eventmesh.tracing.place import Peer, Place
from eventmesh.wire.envelope import Envelope

SCHEMA_URL = "https://opentelemetry.io/schemas/1.45.0"

Operation = Literal["create", "send", "receive", "process", "settle"]
"""Both the name and the type of an operation: we have no names of our own for them."""

Value = str | int | float | bool
Attributes = Mapping[str, Value]

SYSTEM = "messaging.system"
OPERATION_NAME = "messaging.operation.name"
OPERATION_TYPE = "messaging.operation.type"
DESTINATION = "messaging.destination.name"
SUBSCRIPTION = "messaging.destination.subscription.name"
CONSUMER_GROUP = "messaging.consumer.group.name"
BATCH_COUNT = "messaging.batch.message_count"
MESSAGE_ID = "messaging.message.id"
CONVERSATION_ID = "messaging.message.conversation_id"
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
EVENT_TYPE = "cloudevents.event_type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
PEER_ADDRESS = "network.peer.address"
PEER_PORT = "network.peer.port"
ERROR_TYPE = "error.type"
EXCEPTION_TYPE = "exception.type"
EXCEPTION_MESSAGE = "exception.message"
EXCEPTION_STACKTRACE = "exception.stacktrace"

ATTEMPT = "eventmesh.attempt"
GROUP_WAIT = "eventmesh.group.wait"
OUTBOX_TIME = "eventmesh.outbox.time"
DELAY = "eventmesh.delay"
ROLLED_BACK = "eventmesh.transaction.rolled_back"
OUTCOME = "eventmesh.outcome"
SAGA_NAME = "eventmesh.saga.name"
SAGA_ID = "eventmesh.saga.id"
SAGA_STEP = "eventmesh.saga.step"

OPERATION_DURATION = "messaging.client.operation.duration"
PROCESS_DURATION = "messaging.process.duration"
SENT_MESSAGES = "messaging.client.sent.messages"
CONSUMED_MESSAGES = "messaging.client.consumed.messages"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The limits of the durations' buckets, as the conventions advise."""

NOT_PROCESSED = "not_processed"
"""The error type of a message that became a dead letter before its handler was called: it cannot
be read, or it is poison."""
REJECTED = "rejected"
"""The error type of a message that the broker rejected."""


def destination_of(place: Place, message: str | None, subscription: str = "") -> str:
    """What messages of this name are published to, or, with a subscription, consumed from. None
    stands for messages of several names; the result is empty where that has no one name."""
    return place.source(subscription, message) if subscription else place.destination(message)


def span_name(operation: Operation, destination: str) -> str:
    """`{operation} {destination}`; the operation alone where the destination has no one name."""
    return f"{operation} {destination}" if destination else operation


def of_operation(
    place: Place, operation: Operation, message: str | None, subscription: str = ""
) -> dict[str, Value]:
    """What every span and every metric of this operation says, on messages of this name or, for
    None, of several."""
    attributes: dict[str, Value] = {
        SYSTEM: place.system,
        OPERATION_NAME: operation,
        OPERATION_TYPE: operation,
    }
    if destination := destination_of(place, message, subscription):
        attributes[DESTINATION] = destination
    if subscription:
        attributes[SUBSCRIPTION] = subscription
        if place.has_groups:
            attributes[CONSUMER_GROUP] = subscription
    if place.address:
        attributes[SERVER_ADDRESS] = place.address
        if place.port is not None:
            attributes[SERVER_PORT] = place.port
    return attributes


def of_span(
    place: Place, operation: Operation, message: str | None, subscription: str = ""
) -> dict[str, Value]:
    """What every span of this operation says; samplers may decide on it."""
    attributes = of_operation(place, operation, message, subscription)
    if place.has_routing_keys and message and operation != "settle":
        attributes[ROUTING_KEY] = message
    return attributes


def of_peer(peer: Peer | None) -> dict[str, Value]:
    """Where an operation on the network went, for its span. Metrics do not have it, because each
    failover would begin new series of them."""
    return {} if peer is None else {PEER_ADDRESS: peer.address, PEER_PORT: peer.port}


def of_link(place: Place, message: str, subscription: str = "") -> dict[str, Value]:
    """What the link to a message says where the span is about messages of several names."""
    attributes: dict[str, Value] = {}
    if destination := destination_of(place, message, subscription):
        attributes[DESTINATION] = destination
    if place.has_routing_keys:
        attributes[ROUTING_KEY] = message
    return attributes


def of_message(envelope: Envelope) -> dict[str, Value]:
    """All that is said of one message, where it is created and where it is processed. The other
    spans, of which there are many, say its id only."""
    attributes: dict[str, Value] = {
        MESSAGE_ID: encodable(envelope.id),
        CONVERSATION_ID: encodable(envelope.correlation_id),
        EVENT_TYPE: encodable(envelope.name),
    }
    if saga := envelope.attributes.get("sagaid"):
        attributes[SAGA_NAME], _, attributes[SAGA_ID] = encodable(saga).partition("/")
        attributes[SAGA_STEP] = encodable(envelope.attributes.get("sagastep", ""))
    return attributes


def encodable(text: str) -> str:
    """The text as it can be exported: anybody may send bytes that are not UTF-8, which we keep as
    lone surrogates, and exporters drop all spans of a batch for one that they cannot encode."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def with_error(attributes: Attributes, error: str) -> Attributes:
    """The same of an operation that ended with an error of this type; as it is without one."""
    return {**attributes, ERROR_TYPE: error} if error else attributes


def for_counter(attributes: Attributes) -> dict[str, Value]:
    """The same for a counter of messages, which has no type of operation."""
    return {name: value for name, value in attributes.items() if name != OPERATION_TYPE}


def common_name(envelopes: Sequence[Envelope]) -> str | None:
    """The name that all of these messages have; None where they differ, or there are none."""
    names = {envelope.name for envelope in envelopes}
    return names.pop() if len(names) == 1 else None


def error_type(error: BaseException) -> str:
    """The canonical name of an error's class."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else _qualified(kind)


def _qualified(kind: type[BaseException]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
