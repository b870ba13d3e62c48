"""The protocol between the runtime and a broker. Everything is a batch.

A transport promises delivery at least once: what `publish` returned for is on the broker's disk
(as far as the broker is configured to keep it there), and a delivery that is not settled comes
again. `eventmesh.testing.conformance` proves the promises on any transport.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol, Self

from eventmesh.errors import PublishError, Unreachable
from eventmesh.transports.census import Census
from eventmesh.transports.outcome import Outcome
from eventmesh.wire.cloudevents import Unreadable
from eventmesh.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Subscription:
    """One service's durable, named consumer of one or more messages.

    Workers that consume the same subscription compete; different subscriptions each get all.
    """

    name: str
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """An envelope handed to a worker and not yet settled.

    `attempt` counts from 1 and grows by one with each RetryAfter. `deliveries` counts how often
    this attempt was handed to a worker, this time included: it grows when workers vanish. `token`
    is the transport's own.

    Where the broker holds something in which there is no envelope, `unreadable` says why; the
    envelope then has no attributes, and all that came as its data.
    """

    envelope: Envelope
    attempt: int = 1
    deliveries: int = 1
    token: Any = field(default=None, repr=False)
    unreadable: str = ""

    @classmethod
    def of(cls, opened: Envelope | Unreadable, attempt: int, deliveries: int, token: Any) -> Self:
        """The delivery of what was found on the broker."""
        if isinstance(opened, Unreadable):
            raw = Envelope({}, opened.content)
            return cls(raw, attempt, deliveries, token, opened.reason)
        return cls(opened, attempt, deliveries, token)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up. `id` is the dead letter's own, by which it is replayed."""

    id: str
    subscription: str
    envelope: Envelope
    reason: str
    error: str
    attempts: int
    died_at: datetime


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """How many messages a subscription holds, by state; None where the broker cannot tell.

    `oldest_age` is the age in seconds of the oldest message that could be delivered now.
    """

    ready: int
    delayed: int | None
    in_flight: int | None
    dead: int
    oldest_age: float | None


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """What every transport can be told.

    `visibility_timeout`: after this many seconds without a sign of life from a worker, what it
    held is delivered to another. `prefix` begins the name of everything made on the broker.
    `looking`: connecting makes no broker where there is none; a census of nothing is empty.
    """

    visibility_timeout: float = 30.0
    prefix: str = "eventmesh"
    looking: bool = False


@dataclass(frozen=True, slots=True)
class Unrouted:
    """The messages of one name that no subscription takes yet: they wait for the first that does.

    `oldest_age` is the age in seconds of the oldest, `bytes` the size of their data; both are None
    where the broker cannot tell. `foreign` messages are in RabbitMQ's queue for names that no
    EventMesh publisher has used: no subscription will get them, because nobody has made their
    routes.
    """

    message: str
    number: int
    oldest_age: float | None = None
    bytes: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What the broker answered for the messages of one `publish`, by message id.

    A message that is neither rejected nor unconfirmed is confirmed: it is on the broker. So the
    empty result says that the whole batch is.
    """

    rejected: Mapping[str, str] = field(default_factory=dict)
    """The ids of messages that are not on the broker, with the reason: it rejected the message or,
    with `atomic_batches`, an earlier one of the same key."""

    unconfirmed: frozenset[str] = frozenset()
    """The ids of messages for which no answer came before `error`: each may be on the broker."""

    error: Unreachable | None = None
    """Why messages are unconfirmed."""

    @classmethod
    def interrupted(
        cls,
        envelopes: Iterable[Envelope],
        error: Unreachable,
        rejected: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """The result when this error came before these messages were confirmed."""
        return cls(rejected, frozenset(envelope.id for envelope in envelopes), error)

    def is_confirmed(self, envelope: Envelope) -> bool:
        """Whether the broker has this message of the batch safely."""
        return envelope.id not in self.rejected and envelope.id not in self.unconfirmed

    def raise_for_failures(self) -> None:
        """Raise unless every message is confirmed: `error`, or PublishError for the rejected."""
        if self.error is not None:
            raise self.error
        if self.rejected:
            raise PublishError(self.rejected)


ALL_CONFIRMED = PublishResult()


class Consumer(Protocol):
    """A worker's hold on a subscription."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for one delivery; return it with what else is there, up to `limit`.

        Never more than `prefetch` deliveries are out unsettled; at that number it waits. May be
        cancelled at any moment without loss. Unreachable when the broker is gone: leave the
        context and consume anew.
        """
        ...

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        """Tell the broker what became of these. One that the broker has taken back meanwhile is
        passed over: it will come again. So may one that was settled right before a connection was
        lost, on a broker that confirms no acknowledgement. Unreachable as in `receive`."""
        ...


class Transport(Protocol):
    """A connection to one broker, for one process."""

    atomic_batches: bool
    """Whether a batch is stored in one step and in its order, or not at all.

    What is refused of it is left out then, and with it whatever comes after it in the batch and
    has its key: nothing overtakes. Elsewhere, who minds that sends no two of a key at once."""

    exact_deliveries: bool
    """Whether `Delivery.deliveries` leaves out what a consumer gave back without having handed it
    out. Where it does not, a high count is no more than a suspicion."""

    async def connect(self) -> None:
        """Open the connection; Unreachable when that fails."""
        ...

    async def close(self) -> None:
        """Close the connection. May be called twice, and after a failed `connect`."""
        ...

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        """Make what these subscriptions need on the broker. Idempotent; heals what is missing.

        A message published before any subscription took its name has been kept, and goes to the
        first one declared that does.
        """
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        """Publish a batch, and return what the broker answered for each message.

        A confirmed message is stored for every subscription that is declared. Nothing that the
        broker does raises here: a lost connection, or a transport that is closed, is the result's
        `error`. An empty batch is confirmed.
        """
        ...

    def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AbstractAsyncContextManager[Consumer]:
        """Consume a subscription; on leaving, what is unsettled goes back for others at once.

        While the context is open, its deliveries are kept from being given to others, however
        long they take to handle.
        """
        ...

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        """What the subscription holds now."""
        ...

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        """What these subscriptions hold, and what of these messages no subscription takes yet,
        counted by version; where the broker can tell, also what subscriptions of these messages
        hold that are not named.

        Nothing is made, lost, settled or brought into another order by it, and consumers go on.
        What moves while it is counted may be counted twice, and is not overlooked: what cannot be
        looked into is `hidden`. A broker that shows its messages by handing them out only
        (`exact_deliveries` says no) counts that as a delivery of each, and its transport says what
        else it costs; of the subscriptions `untouched` it hands out nothing.
        """
        ...

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        """How many messages are unrouted, by name; names of which there are none are left out.

        Without `thorough` it counts these messages, which is cheap enough to be done all the time;
        foreign messages are then counted together, under the empty name. `thorough` looks closely:
        at all names that the broker can list, and at the age of what it shows only by handing it
        out. Messages that one of these `subscriptions` should get, because it was declared in that
        very moment, are brought to it.
        """
        ...

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        """Delete unrouted messages of this name, the oldest first; returns how many.

        All of them; or all but the newest `keep`; or those that are `older_than` so many seconds.
        The empty name stands for all foreign messages together. What a subscription takes is never
        deleted, and one that is declared meanwhile gets what was not. `subscriptions` as above.
        """
        ...

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        """The oldest dead letters, one of each message, up to `limit`. They stay.

        What others have put among them is shown as it is; its reason says so.
        """
        ...

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        """Give the messages of these dead letters to their subscription again, each once, as a
        first attempt, and delete all dead letters of theirs; returns the ids that were found."""
        ...

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        """Delete these dead letters and all others of their messages; returns the ids that were
        found."""
        ...


async def publish_or_raise(transport: Transport, envelopes: Sequence[Envelope]) -> None:
    """Publish a batch and return once all of it is confirmed; else Unreachable or PublishError."""
    (await transport.publish(envelopes)).raise_for_failures()
