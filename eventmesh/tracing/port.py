"""What the runtime tells of a message's way, in the few places where something happens to it.

Nothing here knows OpenTelemetry. `NO_TRACING` is what a process uses in which it is not installed:
it records nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from eventmesh.tracing.place import KnowsPeers
from eventmesh.wire.envelope import Envelope


class Arrived(Protocol):
    """A delivery, as far as it is told of here."""

    @property
    def envelope(self) -> Envelope: ...

    @property
    def attempt(self) -> int: ...


class Settled(Protocol):
    """The outcome of a delivery."""

    @property
    def kind(self) -> str: ...


class Answer(Protocol):
    """What a broker answered for a batch, by message id."""

    @property
    def rejected(self) -> Mapping[str, str]: ...

    @property
    def unconfirmed(self) -> Collection[str]: ...

    @property
    def error(self) -> Exception | None: ...


class ConsumerTracing(Protocol):
    """Of one lane of a subscription, which works on one batch after another."""

    def receiving(self) -> AbstractContextManager[Callable[[Sequence[Arrived]], None]]:
        """While the lane takes messages from the broker; what it is given is called with them."""
        ...

    def handed_over(self, deliveries: Sequence[Arrived]) -> None:
        """Somebody else has received these, and gives them to us."""
        ...

    def processing(self, deliveries: Sequence[Arrived]) -> AbstractContextManager[None]:
        """While a handler is called with these: the errors of the block are its errors. What is
        created in the block is caused by it."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """While calls of handlers share a transaction, which an error of the block rolls back."""
        ...

    def not_processed(self, delivery: Arrived, reason: str) -> None:
        """This one became a dead letter before its handler was called."""
        ...

    def settling(
        self, settlements: Sequence[tuple[Arrived, Settled]]
    ) -> AbstractContextManager[None]:
        """While the broker is told these outcomes."""
        ...

    def ids_of(self, delivery: Arrived) -> Mapping[str, str]:
        """The fields `trace_id` and `span_id` for log lines about this message of the batch; none
        where it has no trace."""
        ...


class Tracing(Protocol):
    """Of one service in this process."""

    def over(self, transport: KnowsPeers) -> None:
        """This is the transport by which messages are published and consumed from now on."""
        ...

    def created(
        self, envelope: Envelope, *, delay: float = 0.0, cause: Envelope | None = None
    ) -> Envelope:
        """A message was created: the envelope to send, with the context of its creation. `cause` is
        given where the handler was called with several messages, of which this is the cause."""
        ...

    def sending(
        self, envelopes: Sequence[Envelope]
    ) -> AbstractContextManager[Callable[[Answer], None]]:
        """While a batch is published; what it is given is called with the broker's answer."""
        ...

    def consumer(
        self, subscription: str, messages: Collection[str], commands: Collection[str]
    ) -> ConsumerTracing:
        """For a lane of this subscription to messages of these names, of which these are
        commands."""
        ...


class _NoConsumerTracing:
    def receiving(self) -> AbstractContextManager[Callable[[Sequence[Arrived]], None]]:
        return IGNORING

    def handed_over(self, deliveries: Sequence[Arrived]) -> None: ...

    def processing(self, deliveries: Sequence[Arrived]) -> AbstractContextManager[None]:
        return NOTHING

    def transaction(self) -> AbstractContextManager[None]:
        return NOTHING

    def not_processed(self, delivery: Arrived, reason: str) -> None: ...

    def settling(
        self, settlements: Sequence[tuple[Arrived, Settled]]
    ) -> AbstractContextManager[None]:
        return NOTHING

    def ids_of(self, delivery: Arrived) -> Mapping[str, str]:
        return NO_IDS


class _NoTracing:
    def over(self, transport: KnowsPeers) -> None: ...

    def created(
        self, envelope: Envelope, *, delay: float = 0.0, cause: Envelope | None = None
    ) -> Envelope:
        return envelope

    def sending(
        self, envelopes: Sequence[Envelope]
    ) -> AbstractContextManager[Callable[[Answer], None]]:
        return IGNORING

    def consumer(
        self, subscription: str, messages: Collection[str], commands: Collection[str]
    ) -> ConsumerTracing:
        return NO_CONSUMER_TRACING


def ignore(_: Any) -> None:
    """For what nobody records."""


NOTHING: AbstractContextManager[None] = nullcontext()
NO_IDS: Mapping[str, str] = {}
IGNORING: AbstractContextManager[Callable[[Any], None]] = nullcontext(ignore)
NO_CONSUMER_TRACING: ConsumerTracing = _NoConsumerTracing()
NO_TRACING: Tracing = _NoTracing()
