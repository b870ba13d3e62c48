"""The protocol between the runtime and a broker; read this to write a transport.

A transport publishes batches of envelopes, and lets consumers receive and settle batches of
deliveries. It promises delivery at least once: a confirmed message is stored by the broker, as
durably as the broker is configured, and a delivery that is not settled is delivered again. How it
does so (streams, queues, tables) is its own matter.

Every method raises Unreachable when the broker cannot be reached or does not answer; the caller
retries, as often as it likes. Only `publish` reports that in its result instead, because part of a
batch may be confirmed. `eventmesh.testing.conformance` checks all promises on any transport.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, Protocol, Self

from eventmesh.errors import PublishError, Unreachable
from eventmesh.tracing.place import Peer
from eventmesh.transports.census import Census
from eventmesh.transports.facts import BrokerFacts
from eventmesh.transports.finding import Found
from eventmesh.transports.outcome import Outcome
from eventmesh.wire.cloudevents import Unreadable
from eventmesh.wire.envelope import Envelope

AfterDead = Literal["continue", "hold"]

MOST_PARTITIONS = 256
"""The most partitions that a subscription may have."""


@dataclass(frozen=True, slots=True)
class Order:
    """That a subscription keeps the messages of each key in order; see `Consumer`.

    `after_dead` says what a dead letter does to the later messages of its key: they `continue`, or
    it `hold`s them until it is replayed or discarded. A broker that cannot hand out single keys
    divides them among `partitions`, each of which has one consumer at a time; others ignore the
    number.
    """

    after_dead: AfterDead = "continue"
    partitions: int = 16


@dataclass(frozen=True, slots=True)
class Subscription:
    """A durable, named consumer of the messages with these names.

    Each subscription gets every message; the workers that consume one subscription share them. With
    an `order`, messages of a key are handled in the order of their publication, whoever handles
    them. Messages without a key are then in order among themselves.
    """

    name: str
    messages: tuple[str, ...]
    order: Order | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """An envelope that a worker has received and not settled yet.

    `attempt` starts at 1 and grows by one with each RetryAfter. `deliveries` counts how often this
    attempt was delivered, this delivery included; it is above 1 after a worker died, and a high
    count reveals a poison message. `token` is private to the transport.

    `unreadable` is empty, or says why what the broker delivered is not an envelope. The delivery's
    envelope then has no attributes, and the raw bytes as its data.
    """

    envelope: Envelope
    attempt: int = 1
    deliveries: int = 1
    token: Any = field(default=None, repr=False)
    unreadable: str = ""

    @classmethod
    def of(cls, opened: Envelope | Unreadable, attempt: int, deliveries: int, token: Any) -> Self:
        """The delivery of what was read from the broker."""
        if isinstance(opened, Unreadable):
            raw = Envelope({}, opened.content)
            return cls(raw, attempt, deliveries, token, opened.reason)
        return cls(opened, attempt, deliveries, token)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead-lettered message. `id` names the dead letter, not the message; replay takes it."""

    id: str
    subscription: str
    envelope: Envelope
    reason: str
    error: str
    attempts: int
    died_at: datetime
    by_broker: bool = False
    """Whether the broker dead-lettered it by itself: no worker has, and nobody was told."""


@dataclass(frozen=True, slots=True)
class SubscriptionStats:
    """How many messages a subscription holds, by state; None where the broker cannot tell.

    `oldest_age` is the age in seconds of the oldest message that is ready, None also where none is.
    `held` is how many of the delayed ones wait behind an earlier message of their key, which is to
    be retried, or whose dead letter holds them.
    `consumers` is how many worker processes consume the subscription. `unknown` gives, by the name
    of a figure that the broker cannot tell, the reason in words for people.
    """

    ready: int
    delayed: int | None
    in_flight: int | None
    dead: int
    oldest_age: float | None
    consumers: int | None = None
    declared: bool = True
    """Whether the broker has this subscription. Without it, no message can wait for it."""
    held: int | None = 0
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Options that every transport understands.

    `visibility_timeout`: seconds without a heartbeat after which a consumer counts as dead, and its
    deliveries go to others. `prefix` starts the names of all queues, streams and keys.
    `create_missing`: connecting may create the broker where there is none, as a SQLite file is;
    without it, counting what is not there finds nothing. `management_url`: RabbitMQ's management
    API, which tells operators what AMQP does not; others ignore it.
    """

    visibility_timeout: float = 30.0
    prefix: str = "eventmesh"
    create_missing: bool = True
    management_url: str | None = None


@dataclass(frozen=True, slots=True)
class Unrouted:
    """The messages of one name that no subscription wants yet; the first that does gets them.

    `oldest_age` is the age in seconds of the oldest, `bytes` the size of their data; both are None
    where the broker cannot tell. `foreign` messages were published to RabbitMQ by other programs,
    under names that no EventMesh publisher uses: they have no route to any subscription.
    """

    message: str
    number: int
    oldest_age: float | None = None
    bytes: int | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What became of the messages of one `publish`, by message id.

    | message      | on the broker | what the caller does     |
    |--------------|---------------|--------------------------|
    | confirmed    | yes           | forgets it               |
    | rejected     | no            | retries it later, or not |
    | unconfirmed  | perhaps       | publishes it again       |

    Every message that is neither rejected nor unconfirmed is confirmed, so the empty result says
    that the whole batch is stored.
    """

    rejected: Mapping[str, str] = field(default_factory=dict)
    """Ids of messages that are not on the broker, with the reason: it rejected this message or,
    with `atomic_batches`, an earlier one with the same key."""

    unconfirmed: frozenset[str] = frozenset()
    """Ids of messages that `error` left without an answer."""

    error: Unreachable | None = None
    """Why messages are unconfirmed."""

    @classmethod
    def interrupted(
        cls,
        envelopes: Iterable[Envelope],
        error: Unreachable,
        rejected: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """The result when this error left these messages without an answer."""
        return cls(rejected, frozenset(envelope.id for envelope in envelopes), error)

    def is_confirmed(self, envelope: Envelope) -> bool:
        """Whether the broker has stored this message of the batch."""
        return envelope.id not in self.rejected and envelope.id not in self.unconfirmed

    def raise_for_failures(self) -> None:
        """Raise unless every message is confirmed: `error`, or PublishError for the rejected."""
        if self.error is not None:
            raise self.error
        if self.rejected:
            raise PublishError(self.rejected)


ALL_CONFIRMED = PublishResult()


class Consumer(Protocol):
    """A worker's connection to a subscription, from `Transport.consume`.

    If the subscription has an order, this is promised for each key, whatever the number of
    consumers, and whatever becomes of them:

    - Its messages are received in the order of their publication. While some that were received are
      unsettled, nobody receives more of this key.
    - One that is settled by RetryAfter or Dead takes back those of its key that were received
      after it, without counting that as a delivery. Settling these has no effect any more.
    - A retry, and what comes after it in its key, is received once its delay has passed.
    - What comes after a dead letter is received next or, if the order says `hold`, once no dead
      letter of the key is left. A replayed dead letter comes before all that waits in its key.

    For example, a1 b1 a2 a3 were received, and a1 is to be retried: a2 and a3 are not handled and
    not settled. They are received again after a1.
    """

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait for a delivery; return it together with others that are ready, up to `limit`.

        At most `prefetch` deliveries are unsettled at any time; at that number, this waits for a
        settlement. It may be cancelled at any moment: no delivery is lost, and none is counted as
        delivered. After Unreachable the consumer is finished: leave its context and call `consume`
        again.
        """
        ...

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        """Acknowledge, retry or dead-letter these deliveries, as their outcomes say.

        Settling is idempotent. A delivery that the broker has meanwhile given to another consumer
        is skipped: that consumer settles it. On a broker that does not confirm acknowledgements, a
        delivery settled right before a lost connection may be delivered again.
        """
        ...


class Transport(Protocol):
    """One process's connection to one broker. Its methods may be called by many tasks at once."""

    atomic_batches: bool
    """Whether the messages of a key in a batch are stored in one step and in their order.

    If so, a rejected message is left out together with the later messages of its key, so that
    nothing overtakes it. If not, a caller that needs order within a key has at most one message
    of each key in a batch."""

    exact_deliveries: bool
    """Whether `Delivery.deliveries` counts only what `receive` returned. If not, it also counts
    messages that a consumer prefetched and returned to the queue, and a high count is only a hint
    of a poison message."""

    keeps_order: bool
    """Whether subscriptions may have an `order`. If not, declaring such a one is a UsageError."""

    dead_letters_by_itself: bool
    """Whether the broker may dead-letter a message without a worker, because its operator has
    limited a queue. Workers then look for such dead letters; see `DeadLetter.by_broker`."""

    def peer(self, *, publishing: bool) -> Peer | None:
        """Where the connection by which it publishes, or else consumes, goes to now; None where
        that is unknown, or no network is used."""
        ...

    async def connect(self) -> None:
        """Open the connection."""
        ...

    async def close(self) -> None:
        """Close the connection; consumers that wait get Unreachable. May be called twice, and after
        a failed `connect`."""
        ...

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        """Create the queues, bindings or groups of these subscriptions. Idempotent; repairs what
        was deleted.

        A message that was published before any subscription wanted its name has been kept. The
        first subscription that is declared for the name gets it.
        """
        ...

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        """Publish a batch, and return once there is an answer for each message.

        A confirmed message is stored for every declared subscription that wants it. Nothing that
        the broker does raises an exception here: a lost connection, a time-out and a closed
        transport are the result's `error`. An empty batch is confirmed.
        """
        ...

    def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AbstractAsyncContextManager[Consumer]:
        """Consume a subscription, which is declared first.

        While the context is open, its deliveries go to nobody else, however long handling them
        takes. On leaving, unsettled deliveries return to the queue at once, in their old order.
        """
        ...

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        """Count what the subscription holds. Read-only: nothing is created, and no message is taken
        from its queue."""
        ...

    async def examine(self, *, thorough: bool = False) -> BrokerFacts:
        """What an operator asks about the broker as a whole. Read-only, as `stats`. `thorough` also
        lists its subscriptions, and measures how it is configured and what our user may do."""
        ...

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        """Count the messages that these subscriptions hold, by message and version, and the
        unrouted ones among `messages`. Where the broker knows its other subscriptions to
        `messages`, they are counted too.

        Read-only: nothing is created, settled or reordered, and consumers continue. A message that
        moves during the count may be counted twice, but is never missed; what cannot be inspected
        is listed as `hidden`. On a broker that shows a message only by delivering it (without
        `exact_deliveries`), each inspection counts as a delivery; the subscriptions in
        `untouched` are not inspected there.
        """
        ...

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        """Find the messages of these subscriptions, and the unrouted ones among `messages`, whose
        id, correlation id or key is one of `wanted`. Dead letters are found by `dead_letters`.

        Read-only, and nothing is delivered: what could be seen only by delivering it is listed as
        `hidden`. A message that moves meanwhile may be found twice, but is never missed.
        """
        ...

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        """Count the unrouted messages by name; names without any are left out.

        By default this counts `messages` only, which is cheap enough for a metric; foreign messages
        are counted together, under the empty name. `thorough` includes every name that the broker
        can list, and the ages that it can find out only by delivering messages to itself. A
        message that one of `subscriptions` wants, because it was declared at this very moment, is
        routed to it.
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
        """Delete unrouted messages of this name, oldest first; returns how many.

        All of them, all but the newest `keep`, or those older than `older_than` seconds. The empty
        name means all foreign messages. A message that a subscription wants is never deleted; a
        subscription that is declared meanwhile gets the rest. `subscriptions` as in `unrouted`.
        """
        ...

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        """The oldest dead letters, one for each message, up to `limit`. They are not removed.

        With `most_bytes`, the list ends with the letter by which its data reach that size. With
        `only`, it has none but those with these ids.

        An entry that another program wrote is included; its reason says so.
        """
        ...

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        """Deliver the messages of these dead letters to the subscription again, each once and as a
        first attempt, and delete all their dead letters; returns the ids that were found.

        `edited` is other data for the message, by the id of its dead letter; it keeps its
        attributes. Looking for a dead letter, delivering it and deleting it is one step where the
        broker has one, so that of two who replay it at once, one finds it.
        """
        ...

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        """Delete these dead letters and all others of the same messages; returns the ids that were
        found."""
        ...


async def publish_or_raise(transport: Transport, envelopes: Sequence[Envelope]) -> None:
    """Publish a batch; raise Unreachable or PublishError unless every message is confirmed."""
    (await transport.publish(envelopes)).raise_for_failures()
