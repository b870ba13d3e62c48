"""What EventMesh declares on RabbitMQ: names, types and arguments of exchanges, queues and
bindings. Pure; `declaring` does it.

    publish ──> exchange <p> ──by message name──> queue <p>.queue.<subscription>
                     ├─ by message name ─> exchange <p>.message.<message> ─> the same queues
                     └─ unroutable ─> exchange <p>.unrouted ──> queue <p>.unrouted.<message>, until
                        a subscription to the message is declared; if no publisher of ours has
                        used that name: queue <p>.foreign
    retry ────> exchange <p>.delay.<ms> ──> queue <p>.delay.<ms>
                     └─ expired ─> default exchange, by routing key: the subscription's queue
    dead ─────> queue <p>.dead.<subscription>

A subscription with an order has partitions instead of one queue:

    exchange <p>, exchanges <p>.message.<message>
      └─ as to a queue ─> exchange <p>.partitions.<subscription>.<partitions>
           ├─ by the bucket of the key ─> queue <p>.partition.<subscription>.<partitions>.<number>
           └─ without one ─> exchange <p>.keyless.<subscription>.<partitions> ─> the first of them
    replay, notes ─> queue <p>.front.<subscription>.<partitions>.<number>: what comes before those
    moving ────> queue <p>.moved.<subscription>.<partitions>.<number>, while there is any
    retries from the time without order ─> queue <p>.queue.<subscription>
    while order is switched on: exchange <p>.switching-on.<subscription> ─> the same queue
    heartbeats ────> exchange <p>.workers.<subscription> ─> a queue of each worker

A publisher knows nothing of partitions. It adds the bucket of a message's key, one of 256, as a
further routing key in the header BCC, which RabbitMQ takes off before it delivers the message. The
exchange of the workers names an alternate exchange with the number of partitions in its name. That
does not exist, but RabbitMQ compares it, and so rejects a version of a service with another number,
and every version while messages are being moved to other partitions.

A message takes two ways to a queue, of which RabbitMQ makes one delivery. If somebody deletes an
exchange or a binding, the other way delivers until `upkeep` has restored it. With one way only,
what is published while some subscriptions are bound again and others are not yet would reach only
some. Deleting exchange <p> deletes all its bindings; but whoever restores it for one subscription
binds it to <p>.message.<message>, and thereby to the queues of all subscriptions to that message.

While no queue is bound to <p>.message.<message> and some are bound to <p>, these get a message, and
it is also stored as unrouted, because RabbitMQ looks at each exchange by itself. It is republished
once the binding is restored, so these queues get it twice. Storing nothing there would lose what is
published while the other way is missing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from eventmesh.errors import UsageError
from eventmesh.transports.base import Order, Subscription
from eventmesh.transports.rabbitmq.headers import BUCKETS, bucket_key, bucket_of

DELIVERY_LIMIT = 2**31 - 1
"""RabbitMQ 4 drops a message of a quorum queue after 20 returns by default. RabbitMQ 3, which has
no limit, rejects `-1` for no limit; this number means the same to both."""

CONSUMER_TIMEOUT = 30 * 24 * 3600 * 1000
"""Milliseconds after which RabbitMQ, from 3.12, takes an unacknowledged delivery back. Its default
of 30 minutes would take messages from handlers that are slow; heartbeats find those that are
dead."""

MOST_HELD = 10_000
"""Messages that one worker holds of a subscription of which it consumes all partitions."""

# fmt: off
_SERIES = (100, 112, 125, 140, 160, 180, 200, 224, 250, 280,
           315, 355, 400, 450, 500, 560, 630, 710, 800, 900)
# fmt: on
DELAY_STEPS: tuple[int, ...] = tuple(
    step
    for decade in range(1, 10)
    for number in _SERIES
    if (step := -(-number * 10**decade // 100)) < 2**32 - 1
)
"""The delays, in milliseconds, that have a queue: steps of about 12% from 10 ms up to RabbitMQ's
longest TTL (Renard's series R20, ISO 3). A retry policy with jitter asks for any delay; the steps
limit how many queues that makes to 20 for each power of ten."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange. What it cannot route goes to the exchange `alternate`. `if_different` is
    the error for the user if there is one of this name with another alternate."""

    name: str
    kind: str
    alternate: str | None = None
    if_different: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        return {"alternate-exchange": self.alternate} if self.alternate else {}


@dataclass(frozen=True, slots=True)
class Queue:
    """A quorum queue. With `delay`, each message moves on to the queue that its routing key names
    after that many milliseconds. With `one_consumer`, it delivers to one consumer at a time, and to
    the next once that has left and its messages are back in their places."""

    name: str
    delay: int | None = None
    one_consumer: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-consumer-timeout": CONSUMER_TIMEOUT,
        }
        if self.one_consumer:
            arguments["x-single-active-consumer"] = True
        if self.delay is None:
            return arguments
        return arguments | {
            # One more: RabbitMQ counts whole milliseconds, and a retry must never come early.
            "x-message-ttl": self.delay + 1,
            # No x-dead-letter-routing-key: a message keeps its own, which names its target queue.
            "x-dead-letter-exchange": "",
            # Otherwise a message is lost when RabbitMQ stops while it moves the message on. With
            # it, a message that is due just as RabbitMQ starts may come 3 minutes late: if its
            # target has no leader yet, RabbitMQ tries again only after its own setting
            # dead_letter_worker_publisher_confirm_timeout (180 s), which no client can shorten.
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of the exchange with this routing key go to the queue."""

    queue: str
    exchange: str
    routing_key: str = ""


@dataclass(frozen=True, slots=True)
class ExchangeBinding:
    """Messages of exchange `source` with this routing key also go to `exchange`."""

    exchange: str
    source: str
    routing_key: str


Entity = Exchange | Queue | Binding | ExchangeBinding
"""What AMQP calls its entities: all that a client can declare."""


class Topology:
    """The names of everything on the broker, and the entities to declare, in their order."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.exchange = prefix
        self.unrouted_exchange = f"{prefix}.unrouted"
        self.foreign = f"{prefix}.foreign"
        self.inspection_lock = f"{prefix}.census"
        self.rerouting_lock = f"{prefix}.rerouting"
        self.name_prefix = f"{prefix}."
        self.queue_prefix = f"{prefix}.queue."
        self.partition_prefix = f"{prefix}.partition."
        self.delay_prefix = f"{prefix}.delay."
        self.message_prefix = f"{prefix}.message."

    def queue(self, subscription: Subscription) -> str:
        """The queue of messages to deliver."""
        return _checked(f"{self.queue_prefix}{subscription.name}")

    def partitions_exchange(self, subscription: Subscription, partitions: int) -> str:
        return _checked(f"{self._prefix}.partitions.{subscription.name}.{partitions}")

    def keyless_exchange(self, subscription: Subscription, partitions: int) -> str:
        return _checked(f"{self._prefix}.keyless.{subscription.name}.{partitions}")

    def partition_queue(self, subscription: Subscription, partitions: int, number: int) -> str:
        """The queue of the messages of one partition."""
        return _checked(f"{self.partition_prefix}{subscription.name}.{partitions}.{number}")

    def front_queue(self, subscription: Subscription, partitions: int, number: int) -> str:
        """The queue of what comes before the messages of one partition."""
        return _checked(f"{self._prefix}.front.{subscription.name}.{partitions}.{number}")

    def front_queue_of(self, subscription: Subscription, key: str | None, order: Order) -> str:
        """The queue of what comes before the messages of this key."""
        number = partition_of(key, order.partitions)
        return self.front_queue(subscription, order.partitions, number)

    def front_queues(self, subscription: Subscription) -> list[str]:
        """The queues of what comes before the messages of the partitions, if there are any."""
        partitions = 0 if subscription.order is None else subscription.order.partitions
        return [self.front_queue(subscription, partitions, each) for each in range(partitions)]

    def moved_queue(self, subscription: Subscription, partitions: int, number: int) -> str:
        """The queue of messages that were moved to a partition, which come before its others."""
        return _checked(f"{self._prefix}.moved.{subscription.name}.{partitions}.{number}")

    def moved_queues(self, subscription: Subscription) -> list[str]:
        """The queues of moved messages. If the first does not exist, none does."""
        partitions = 0 if subscription.order is None else subscription.order.partitions
        return [self.moved_queue(subscription, partitions, each) for each in range(partitions)]

    def workers(self, subscription: Subscription) -> str:
        """The exchange of the heartbeats of a subscription's workers, and the queue that each of
        them consumes, which is always empty, in order to be counted."""
        return _checked(f"{self._prefix}.workers.{subscription.name}")

    def switching(self, subscription: Subscription, to: Literal["on", "off"]) -> str:
        """The queue that exists while order is being switched on, or off: if that is interrupted,
        whoever finds it goes on. Also the exchange of `for_switching_on`."""
        return _checked(f"{self._prefix}.switching-{to}.{subscription.name}")

    def late_queue(self, subscription: Subscription) -> str:
        """The queue of a subscription with an order that nothing is bound to, but in which retries
        arrive that were delayed when it had none: they name the queue that it had then."""
        return f"{self.queue_prefix}{subscription.name}"

    def sign(self, subscription: Subscription) -> str:
        """The queue that exists if the subscription is declared, and that each worker consumes."""
        return (
            self.queue(subscription) if subscription.order is None else self.workers(subscription)
        )

    def queues(self, subscription: Subscription) -> list[str]:
        """The queues of messages to deliver."""
        if subscription.order is None:
            return [self.queue(subscription)]
        partitions = subscription.order.partitions
        return [self.partition_queue(subscription, partitions, each) for each in range(partitions)]

    def dead_letter_queue(self, subscription: Subscription) -> str:
        return _checked(f"{self._prefix}.dead.{subscription.name}")

    def dead_letter_lock(self, subscription: Subscription) -> str:
        """The queue that exists while somebody looks into the dead letters."""
        return _checked(f"{self._prefix}.lock.{subscription.name}")

    def delay(self, step: int) -> str:
        """The exchange, and the queue, of messages that wait this many milliseconds."""
        return f"{self.delay_prefix}{step}"

    def unrouted_queue(self, message: str) -> str:
        """The queue of what was published under this name while no subscription took it."""
        return _checked(f"{self.unrouted_exchange}.{message}")

    def message_exchange(self, message: str) -> str:
        """The exchange to which the queues of all subscriptions to this message are bound."""
        return _checked(f"{self.message_prefix}{message}")

    def for_publishing(self, messages: Iterable[str] = ()) -> list[Entity]:
        """What is needed to publish messages of these names. A message without a subscription waits
        in the queue of its name, so that its first subscription need not search other messages.

        Part of it is the second way to the queues: if exchange <p> was deleted, whoever publishes
        restores the way to subscriptions whose processes are stopped.
        """
        names = sorted(set(messages))
        return [
            *self._for_messages(names),
            *(entity for name in names if _is_literal(name) for entity in self._second_way(name)),
        ]

    def for_subscription(self, subscription: Subscription) -> list[Entity]:
        if subscription.order is not None:
            return self._for_ordered(subscription, subscription.order)
        queue = self.queue(subscription)
        entities = [
            *self._for_messages(subscription.messages),
            Queue(self.dead_letter_queue(subscription)),
            Queue(queue),
        ]
        for message in subscription.messages:
            exchange, forwarding = self._second_way(message)
            # In this order, a message reaches the exchange only once the queue is bound to it.
            entities += [
                exchange,
                Binding(queue, exchange.name),
                forwarding,
                Binding(queue, self.exchange, message),
            ]
        return entities

    def for_subscriptions(self, subscriptions: Iterable[Subscription]) -> list[Entity]:
        """What all of these need, each once. While some queues are bound and others are not, a
        message reaches only some. So all queues, which take longest, are there before the first is
        bound, and no message is forwarded before all are bound."""
        entities = dict.fromkeys(
            entity for each in subscriptions for entity in self.for_subscription(each)
        )
        return sorted(entities, key=self._turn)

    def _turn(self, entity: Entity) -> int:
        """The later ones let messages of the exchange pass to queues."""
        match entity:
            case ExchangeBinding(name, self.exchange):
                return 2 if name.startswith(self.message_prefix) else 3
            case Binding(_, self.exchange):
                return 3
            case Binding(_, source) | ExchangeBinding(_, source):
                return 1 if source.startswith(self.message_prefix) else 0
        return 0

    def workers_exchange(
        self, subscription: Subscription, order: Order, *, is_moving: bool = False
    ) -> Exchange:
        """The exchange of workers with so many partitions, or, while messages are being moved to
        these, one that no worker accepts."""
        number = f"{order.partitions}.moving" if is_moving else f"{order.partitions}"
        return Exchange(
            self.workers(subscription),
            "fanout",
            # Does not exist, so what nobody hears is returned.
            alternate=_checked(f"{self._prefix}.number.{subscription.name}.{number}"),
            if_different=f"{subscription.name} has another number of partitions on RabbitMQ than "
            f"{order.partitions}, which this version of its service declares: declare the number "
            f"that it has, or stop its workers and run `eventmesh partitions set "
            f'{subscription.name} {order.partitions} --reason "…"`.',
        )

    def _for_ordered(self, subscription: Subscription, order: Order) -> list[Entity]:
        return [
            # First, because it fails if the subscription has another number of partitions.
            self.workers_exchange(subscription, order),
            *self._for_messages(subscription.messages),
            Queue(self.dead_letter_queue(subscription)),
            Queue(self.workers(subscription)),
            Queue(self.late_queue(subscription)),
            *self.for_partitions(subscription),
        ]

    def for_partitions(self, subscription: Subscription) -> list[Entity]:
        """The partitions of a subscription with an order, and the ways of messages to them."""
        order = subscription.order or Order()
        exchange_name = self.partitions_exchange(subscription, order.partitions)
        keyless = self.keyless_exchange(subscription, order.partitions)
        queues = self.queues(subscription)
        fronts = self.front_queues(subscription)
        entities: list[Entity] = [
            *(Queue(queue, one_consumer=True) for queue in (*queues, *fronts)),
            Exchange(keyless, "fanout"),
            Binding(queues[0], keyless),
            Exchange(exchange_name, "direct", alternate=keyless),
        ]
        entities += [
            Binding(queues[bucket % order.partitions], exchange_name, bucket_key(bucket))
            for bucket in range(BUCKETS)
        ]
        for message in subscription.messages:
            exchange, forwarding = self._second_way(message)
            entities += [
                exchange,
                ExchangeBinding(exchange_name, exchange.name, ""),
                forwarding,
                ExchangeBinding(exchange_name, self.exchange, message),
            ]
        return entities

    def for_switching_on(self, plain: Subscription) -> list[Entity]:
        """A further way of all messages of a subscription without order to its queue, by an
        exchange that is deleted to cut the queue off from all of them in one moment."""
        exchange = self.switching(plain, "on")
        return [
            Exchange(exchange, "fanout"),
            Binding(self.queue(plain), exchange),
            *(ExchangeBinding(exchange, self.exchange, message) for message in plain.messages),
        ]

    def for_moved(self, subscription: Subscription) -> list[Entity]:
        """The queues to which messages are moved."""
        return [Queue(queue, one_consumer=True) for queue in self.moved_queues(subscription)]

    def for_delay(self, step: int) -> list[Entity]:
        name = self.delay(step)
        return [Exchange(name, "fanout"), Queue(name, delay=step), Binding(name, name)]

    def _for_messages(self, messages: Iterable[str]) -> list[Entity]:
        """What every message needs, and the unrouted queues of these."""
        entities: list[Entity] = [
            Exchange(self.foreign, "fanout"),
            Queue(self.foreign),
            Binding(self.foreign, self.foreign),
            Exchange(self.unrouted_exchange, "direct", alternate=self.foreign),
        ]
        for message in filter(None, sorted(messages)):
            queue = self.unrouted_queue(message)
            entities += [Queue(queue), Binding(queue, self.unrouted_exchange, message)]
        entities.append(Exchange(self.exchange, "topic", alternate=self.unrouted_exchange))
        return entities

    def _second_way(self, message: str) -> tuple[Exchange, ExchangeBinding]:
        name = self.message_exchange(message)
        return (
            Exchange(name, "fanout", alternate=self.unrouted_exchange),
            ExchangeBinding(name, self.exchange, message),
        )


def partition_of(key: str | None, partitions: int) -> int:
    """The number of the partition of a key; messages without a key have one together."""
    return 0 if key is None else bucket_of(key) % partitions


def window(partitions: int) -> int:
    """How many messages a consumer of a partition holds at most. It depends on the number of
    partitions alone, so that all consumers of a queue hold the same; see `ordered`."""
    return max(1, MOST_HELD // partitions)


def delay_step(seconds: float) -> int | None:
    """The shortest step that is at least this long; None if there is nothing to wait for.

    A delay beyond the last step, 46 days, becomes that: RabbitMQ has no longer TTL.
    """
    if seconds <= 0:
        return None
    return DELAY_STEPS[min(bisect_left(DELAY_STEPS, seconds * 1000), len(DELAY_STEPS) - 1)]


def _is_literal(message: str) -> bool:
    """Whether it names one message: in a topic exchange, `*` and `#` are wildcards."""
    return bool(message) and not {"*", "#"} & set(message.split("."))


def _checked(name: str) -> str:
    if len(name.encode()) > 255:
        raise UsageError(
            f"The name {name!r} is longer than the 255 bytes that RabbitMQ allows: choose a "
            f"shorter prefix, service or handler name."
        )
    return name
