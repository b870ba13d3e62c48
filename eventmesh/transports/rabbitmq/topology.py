"""What EventMesh makes on RabbitMQ and writes on its messages, and how it decides: names,
arguments, headers, the steps of delays, the plan of acknowledgements. Pure; no connection here.

    publish ──> exchange <p> ──by message name──> queue <p>.queue.<subscription>
                     ├─ by message name ─> exchange <p>.message.<message> ─> the same queues
                     └─ nobody takes it ─> exchange <p>.unrouted ──> queue <p>.unrouted.<message>,
                        until a subscription that does is declared; of a name that no publisher of
                        ours has used: queue <p>.foreign
    retry ────> exchange <p>.delay.<ms> ──> queue <p>.delay.<ms>
                     └─ expired ─> default exchange, by routing key: the subscription's queue
    dead ─────> queue <p>.dead.<subscription>

A message takes two ways to a queue, of which RabbitMQ makes one delivery. Whichever exchange or
binding somebody deletes, the other way delivers until `amqp_upkeep` has restored it. With one way,
what is published while some subscriptions are bound again and others are not yet would reach only
those. The exchange <p> takes all bindings with it; but whoever restores it for one subscription
binds it to <p>.message.<message>, and thereby to the queues of all that take this message.

While no queue is bound to <p>.message.<message> and some are bound to <p>, these get a message, and
it is kept as unrouted all the same, because RabbitMQ looks at each exchange by itself. It is
brought back once the binding is restored, so that they get it twice. Keeping nothing there would
lose what is published while the other way is missing.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from eventmesh.errors import UsageError
from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead

DELIVERY_LIMIT = 2**31 - 1
"""RabbitMQ 4 drops a message of a quorum queue after 20 returns unless told otherwise. `-1` (no
limit) is refused by RabbitMQ 3, which has no limit of its own; this is the same to both."""

CONSUMER_TIMEOUT = 30 * 24 * 3600 * 1000
"""Milliseconds for which a delivery may be handled. RabbitMQ's 30 minutes would take messages away
from slow handlers that live; heartbeats tell the dead from the slow. (From RabbitMQ 3.12.)"""

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
"""Milliseconds of the delays that get a queue: steps of about 12% from 10 ms up to the longest
TTL of RabbitMQ (Renard's series R20, ISO 3). A policy with jitter asks for any delay; this bounds
how many queues it makes: 20 for each power of ten."""

HEADER_PREFIX = "x-eventmesh-"
ATTEMPT = HEADER_PREFIX + "attempt"
ATTEMPTS = HEADER_PREFIX + "attempts"
REASON = HEADER_PREFIX + "reason"
ERROR = HEADER_PREFIX + "error"
DIED_AT = HEADER_PREFIX + "died-at"
DEAD_ID = HEADER_PREFIX + "dead-id"
CUT = HEADER_PREFIX + "cut"
"""What of a message could not be kept; see `amqp_parcels`."""

MAX_REASON_BYTES = 1024
MAX_ERROR_BYTES = 8 * 1024
"""Headers must fit into one frame, whatever the length of a traceback."""

_NOT_COPIED = (
    HEADER_PREFIX,
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
    "x-opt-",
)
_ROUTING = frozenset({"CC", "BCC"})


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange; `alternate` takes what it cannot route."""

    name: str
    kind: str
    alternate: str | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"alternate-exchange": self.alternate} if self.alternate else {}


@dataclass(frozen=True, slots=True)
class Queue:
    """A quorum queue. With `delay`, each message goes on after that many milliseconds to the queue
    that its routing key names."""

    name: str
    delay: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        arguments = {
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-consumer-timeout": CONSUMER_TIMEOUT,
        }
        if self.delay is None:
            return arguments
        return arguments | {
            # One more: the broker counts whole milliseconds, and a retry must never come early.
            "x-message-ttl": self.delay + 1,
            # With no routing key of its own, the message keeps its own: the target queue's name.
            "x-dead-letter-exchange": "",
            # Without this a message is lost when the broker stops while it moves it on. With it,
            # one that is due just as the broker starts may come 3 minutes late: where its target
            # has no leader yet, the broker tries again only after its own setting
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
class Forwarding:
    """Messages of the source with this routing key go to the exchange."""

    exchange: str
    source: str
    routing_key: str


Piece = Exchange | Queue | Binding | Forwarding


class Topology:
    """The names of everything on the broker, and the pieces to make, in their order."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.exchange = prefix
        self.unrouted = f"{prefix}.unrouted"
        self.foreign = f"{prefix}.foreign"
        self.census = f"{prefix}.census"
        self.queue_prefix = f"{prefix}.queue."

    def queue(self, subscription: Subscription) -> str:
        """The queue of what is to be delivered."""
        return _checked(f"{self.queue_prefix}{subscription.name}")

    def dead(self, subscription: Subscription) -> str:
        """The queue of the dead letters."""
        return _checked(f"{self._prefix}.dead.{subscription.name}")

    def delay(self, step: int) -> str:
        """The exchange, and the queue, of what is to wait this many milliseconds."""
        return f"{self._prefix}.delay.{step}"

    def kept(self, message: str) -> str:
        """The queue of what was published under this name before anybody took it."""
        return _checked(f"{self.unrouted}.{message}")

    def fan(self, message: str) -> str:
        """The exchange that has the queues of all who take this message."""
        return _checked(f"{self._prefix}.message.{message}")

    def for_publishing(self, messages: Iterable[str] = ()) -> list[Piece]:
        """For messages of these names. One that nobody takes waits in a queue of its own name, so
        that its first subscription finds it without looking through all the others'.

        Part of it is the second way, up to the queues that are bound to it: if the exchange was
        deleted, whoever publishes restores the way to subscriptions whose processes are stopped.
        """
        names = sorted(set(messages))
        return [
            *self._for_messages(names),
            *(piece for name in names if _is_plain(name) for piece in self._fan(name)),
        ]

    def _fan(self, message: str) -> tuple[Piece, Piece]:
        """The second way of a message to queues that are bound to its end."""
        fan = self.fan(message)
        return (
            Exchange(fan, "fanout", alternate=self.unrouted),
            Forwarding(fan, self.exchange, message),
        )

    def _for_messages(self, messages: Iterable[str]) -> list[Piece]:
        """What all messages need, and what those of these names need to be kept as unrouted."""
        return [
            Exchange(self.foreign, "fanout"),
            Queue(self.foreign),
            Binding(self.foreign, self.foreign),
            Exchange(self.unrouted, "direct", alternate=self.foreign),
            *(
                piece
                for message in sorted(messages)
                if message
                for piece in (
                    Queue(self.kept(message)),
                    Binding(self.kept(message), self.unrouted, message),
                )
            ),
            Exchange(self.exchange, "topic", alternate=self.unrouted),
        ]

    def for_subscription(self, subscription: Subscription) -> list[Piece]:
        queue = self.queue(subscription)
        return [
            *self._for_messages(subscription.messages),
            Queue(self.dead(subscription)),
            Queue(queue),
            *(
                piece
                for message in subscription.messages
                for exchange, forwarding in [self._fan(message)]
                for piece in (
                    # In this order the exchange of a message is reached only once it has a queue.
                    exchange,
                    Binding(queue, self.fan(message)),
                    forwarding,
                    Binding(queue, self.exchange, message),
                )
            ),
        ]

    def for_delay(self, step: int) -> list[Piece]:
        name = self.delay(step)
        return [Exchange(name, "fanout"), Queue(name, delay=step), Binding(name, name)]


def delay_step(seconds: float) -> int | None:
    """The step that is at least this long; None where there is nothing to wait for.

    A delay longer than the last step, 46 days, is cut to it: RabbitMQ has no longer TTL.
    """
    if seconds <= 0:
        return None
    return DELAY_STEPS[min(bisect_left(DELAY_STEPS, seconds * 1000), len(DELAY_STEPS) - 1)]


def plan_acks(outstanding: Iterable[int], done: Collection[int]) -> list[tuple[int, bool]]:
    """The acknowledgements for `done`, as (tag, multiple), when `outstanding` (ascending) are all
    that are unacknowledged: one for as many of the oldest as are done, one for each other."""
    last = None
    for tag in outstanding:
        if tag not in done:
            break
        last = tag
    if last is None:
        return [(tag, False) for tag in sorted(done)]
    return [(last, True), *((tag, False) for tag in sorted(done) if tag > last)]


def copied(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headers for publishing a message again: without what the broker and EventMesh noted on
    it, and without those that would route it to more queues."""
    return {
        name: _sendable(value)
        for name, value in (headers or {}).items()
        if not name.startswith(_NOT_COPIED) and name not in _ROUTING
    }


def retried(headers: Mapping[str, Any] | None, attempt: int) -> dict[str, Any]:
    """The headers for the next attempt."""
    return copied(headers) | {ATTEMPT: attempt}


def buried(
    headers: Mapping[str, Any] | None, dead: Dead, *, attempts: int, letter_id: str, now: datetime
) -> dict[str, Any]:
    """The headers of a dead letter: the message's own, and what became of it."""
    return copied(headers) | {
        DEAD_ID: letter_id,
        REASON: _cut(dead.reason, MAX_REASON_BYTES),
        ERROR: _cut(dead.error, MAX_ERROR_BYTES),
        ATTEMPTS: attempts,
        DIED_AT: now.isoformat(),
    }


def count_in(headers: Mapping[str, Any], name: str, default: int) -> int:
    """The number in a header; the default where there is none, or something odd."""
    value = headers.get(name)
    return value if type(value) is int and value >= 0 else default


def _sendable(value: Any) -> Any:
    """A header's value as it came, but for what the client library reads and cannot write."""
    match value:
        case bytes():  # a string that is not UTF-8
            return bytearray(value)
        case Decimal():  # would be refused for its scale or size
            return value if _fits_decimal(value) else str(value)
        case float():  # would be written with 32 bits
            return value if _fits_single(value) else repr(value)
        case dict():
            return {name: _sendable(item) for name, item in value.items()}
        case list():
            return [_sendable(item) for item in value]
        case _:
            return value


def _fits_decimal(value: Decimal) -> bool:
    """Whether it can be written with a scale of 8 bits and a number of 32."""
    scale = -int(value.as_tuple().exponent)
    return 0 <= scale <= 255 and abs(value.scaleb(scale)) < 2**31


def _fits_single(value: float) -> bool:
    try:
        return bool(struct.unpack(">f", struct.pack(">f", value))[0] == value)
    except OverflowError:
        return False


def beginning(text: str, size: int) -> str:
    """The text, or where it is longer than so many bytes, its beginning."""
    raw = text.encode("utf-8", errors="backslashreplace")
    if len(raw) > size:
        raw = raw[: size - 3].decode(errors="ignore").encode() + "…".encode()
    return raw.decode()


def _cut(text: str, size: int) -> str:
    """The text, or where it is too long its end, which in a traceback says most."""
    raw = text.encode("utf-8", errors="backslashreplace")
    if len(raw) > size:
        raw = "…".encode() + raw[len(raw) - size + 3 :].lstrip(bytes(range(0x80, 0xC0)))
    return raw.decode()


def _is_plain(message: str) -> bool:
    """Whether it names one message: a topic exchange would take `*` and `#` for any."""
    return bool(message) and not {"*", "#"} & set(message.split("."))


def _checked(name: str) -> str:
    if len(name.encode()) > 255:
        raise UsageError(
            f"The name {name!r} is longer than the 255 bytes that RabbitMQ takes: choose a shorter "
            f"prefix, service or handler name."
        )
    return name
