"""Looking into queues without changing what they deliver.

RabbitMQ shows a message only by delivering it. So an inspection takes all messages of a queue at
once, ahead of the workers, by consumers of the highest priority, and gives them back at once. It
takes all, because a worker that got later messages meanwhile would handle them before the earlier
ones. It gives back by closing the channel, upon which RabbitMQ returns the messages to the front of
the queue, in their order, in one step (tried on 3.10 and 4.0; cancelling or rejecting first mixes
the order). Meanwhile workers go on with what they hold and get nothing new: for about a third of a
second, or some seconds if 50,000 messages wait.

An inspection has a price while the messages still wait. RabbitMQ counts a delivery of each: from
the fourth on, a service handles it alone. And RabbitMQ returns what a worker gives back behind what
was given back before: when a worker stops or dies, the messages it held are delivered after those
that were inspected, instead of before them. So inspect while no worker runs that is about to stop.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import Clock
from eventmesh.errors import Busy, Unreachable
from eventmesh.transports.rabbitmq.connection import (
    CONNECT_TIMEOUT,
    LEAVE_TIMEOUT,
    MAX_CHANNELS,
    MAX_HELD,
    BrokerConnection,
    close_channel,
)
from eventmesh.transports.rabbitmq.frames import BODY, DELIVER, HEADER, METHOD
from eventmesh.transports.rabbitmq.queue_lock import LOCK_TIMEOUT, QueueLock, QueueLocked
from eventmesh.transports.rabbitmq.received import ReceivedMessage
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.cloudevents import from_headers
from eventmesh.wire.envelope import Envelope

QUIET = 0.15
"""Seconds without a change after which nothing is on its way any more: messages that a consumer
held which has left appear some milliseconds later."""

STUCK = 10.0
"""Seconds without progress after which RabbitMQ does not deliver what it says is waiting."""

STILL = 0.5
"""Seconds without a change after which nobody is about to take what was given back."""

PRIORITY = 1000
"""The priority of our consumers; workers have none."""

MAX_CONSUMERS = 31
"""Of one queue. RabbitMQ gives back consumer by consumer, in the order of their tags up to here."""

_LONGLONG = struct.Struct(">Q")
_BODY_SIZE_AT = 4

_T = TypeVar("_T")

See = Callable[[str, str, Envelope], None]
"""Is called with the queue, the routing key and the attributes of a message."""


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How many messages wait in a queue, and how many consumers it has."""

    ready: int
    consumers: int


class InspectionRunning(Busy):
    """Another process is looking into the queues."""


async def count_messages(
    connection: BrokerConnection, names: Iterable[str]
) -> dict[str, QueueCounts]:
    """The counts of those of these queues that exist.

    RabbitMQ closes the channel that asks for a missing queue, and opening the next one is what
    takes time: more than a second in all for the 173 delay queues, most of which are missing. So
    if there are many, each of a batch is asked for over a channel of its own.
    """
    left = list(names)
    if len(left) <= MAX_CHANNELS:
        return await _count_one_by_one(connection, left)
    found: dict[str, QueueCounts] = {}
    async with connection.for_many_channels() as other, other.guard(None):
        channels: list[Channel] = []
        while left:
            batch, left = left[:MAX_CHANNELS], left[MAX_CHANNELS:]
            # aiormq confuses channels that are closed and opened at the same time, so all of a
            # batch are open before the first is closed.
            channels = [channel for channel in channels if not channel.is_closed]
            needed = len(batch) - len(channels)
            channels += await _all(other.open_channel(confirms=False) for _ in range(needed))
            counts = await _all(map(_count, channels, batch))
            found |= {name: each for name, each in zip(batch, counts, strict=True) if each}
    return found


async def count_twice(
    connection: BrokerConnection, names: Iterable[str], clock: Clock
) -> dict[str, QueueCounts]:
    """As `count_messages`, but asked twice, and the higher counts: messages may be on their way
    back from a consumer that has left, and RabbitMQ says 0 if a quorum queue does not answer it
    within 250 ms."""
    first = await count_messages(connection, names)
    await clock.sleep(QUIET)
    second = await count_messages(connection, first)
    return {
        name: QueueCounts(
            max(counts.ready, first[name].ready), max(counts.consumers, first[name].consumers)
        )
        for name, counts in second.items()
    }


async def _count_one_by_one(
    connection: BrokerConnection, names: Iterable[str]
) -> dict[str, QueueCounts]:
    found: dict[str, QueueCounts] = {}
    left = deque(names)
    async with connection.guard(None):
        while left:
            async with connection.channel() as channel:
                while left and not channel.is_closed:
                    name = left.popleft()
                    if counts := await _count(channel, name):
                        found[name] = counts
    return found


async def _count(channel: Channel, name: str) -> QueueCounts | None:
    """None if the queue does not exist; the channel is closed then."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            answer = await channel.queue_declare(name, passive=True)
    except ChannelNotFoundEntity:
        return None
    return QueueCounts(answer.message_count or 0, answer.consumer_count or 0)


async def _all(doing: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of these, once all have ended; the first error, if there is one."""
    results = await asyncio.gather(*doing, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[_T], results)


class Inspector:
    """Looks into the queues under one prefix."""

    def __init__(self, connection: BrokerConnection, topology: Topology, clock: Clock) -> None:
        self._connection = connection
        self._lock = QueueLock(
            connection, topology.inspection_lock, clock, "counting the messages of this broker"
        )
        self._clock = clock

    @asynccontextmanager
    async def exclusively(self, patience: float = LOCK_TIMEOUT) -> AsyncIterator[None]:
        """Two inspections at a time would each see a part, and mix the order. InspectionRunning if
        another process inspects for longer than `patience` seconds."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._lock.held(patience))
            except QueueLocked:
                raise InspectionRunning(
                    "Another process is counting the messages of this broker: wait until it has "
                    "finished, and try again."
                ) from None
            yield

    async def counts(self, names: Iterable[str]) -> dict[str, QueueCounts]:
        return await count_twice(self._connection, names, self._clock)

    @asynccontextmanager
    async def holding(self, queues: Sequence[str], see: See) -> AsyncIterator[dict[str, int]]:
        """Hold all messages that wait in these queues, and those that arrive, until the context is
        left; it is entered once `see` was called with each. Yields how many consumers each queue
        has beside ours."""
        if not queues:
            yield {}
            return
        tally = _Tally(see, queues)
        async with self._connection.guard(None):
            channel = await self._connection.open_channel()
        try:
            async with self._connection.guard(None):
                self._connection.tap(channel, tally)
                before = await count_messages(self._connection, queues)
                await channel.basic_qos(prefetch_count=MAX_HELD)
                ours = {
                    # One more than is needed now, for what is published meanwhile.
                    name: min(counts.ready // MAX_HELD + 2, MAX_CONSUMERS)
                    for name, counts in before.items()
                }
                for name, count in ours.items():
                    for number in range(count):
                        await channel.basic_consume(
                            name,
                            _ignore,
                            consumer_tag=f"{number:02}-{queues.index(name)}",
                            arguments={"x-priority": PRIORITY - number},
                        )
                others = await self._wait_until_all_seen(channel, ours, tally)
            yield others
            _check_still_held(channel)
        finally:
            with suppress(Unreachable):  # then the broker has taken the messages back
                async with self._connection.guard(LEAVE_TIMEOUT):
                    await close_channel(channel)

    async def _wait_until_all_seen(
        self, channel: Channel, ours: Mapping[str, int], tally: _Tally
    ) -> dict[str, int]:
        """Return once nothing waits and nothing more arrives: how many consumers each queue has
        beside ours."""
        progress_at, seen = self._clock.monotonic(), -1
        while True:
            before = tally.count
            await self._clock.sleep(QUIET)
            counts = await count_messages(self._connection, ours)
            _check_still_held(channel)
            if tally.count == before and not any(each.ready for each in counts.values()):
                return {name: each.consumers - ours[name] for name, each in counts.items()}
            if tally.count != seen:
                progress_at, seen = self._clock.monotonic(), tally.count
            elif self._clock.monotonic() - progress_at > STUCK:
                raise Unreachable(
                    f"RabbitMQ reports messages in {', '.join(counts)}, but does not "
                    f"deliver them. See its log, and try again."
                )

    async def wait_until_returned(self, queues: Sequence[str]) -> None:
        """Return once the counts of these queues no longer change: what was held is there again,
        and nobody is taking it. A subscription that is declared from now on finds it; one that was
        declared while it was held has not."""
        ready = None
        while queues:
            before = ready
            counts = await count_messages(self._connection, queues)
            ready = sum(each.ready for each in counts.values())
            if ready == before:
                return
            await self._clock.sleep(STILL)


class _Tally:
    """The tap that sees the messages delivered on a channel, and drops their data. The queue of a
    message is known by the tag of its consumer."""

    def __init__(self, see: See, queues: Sequence[str]) -> None:
        self.count = 0
        self._see = see
        self._queues = queues
        self._queue = self._routing_key = ""
        self._expects_header = False
        self._missing_bytes = 0

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind == METHOD and buffer.startswith(DELIVER, start):
            at = start + len(DELIVER)
            tag, at = _short_string(buffer, at)
            self._queue = self._queues[int(tag.partition("-")[2])]
            _, at = _short_string(buffer, at + 9)  # past delivery tag and redelivered: the exchange
            self._routing_key, _ = _short_string(buffer, at)
            self._expects_header = True
            return True
        if kind == HEADER and self._expects_header:
            self._expects_header = False
            (self._missing_bytes,) = _LONGLONG.unpack_from(buffer, start + _BODY_SIZE_AT)
            content_type, headers = ReceivedMessage(0, buffer[start:end], b"").essentials()
            self.count += 1
            self._see(self._queue, self._routing_key, from_headers(headers, content_type, b""))
            return True
        if kind == BODY and self._missing_bytes > 0:
            self._missing_bytes -= end - start
            return True
        return False


def _check_still_held(channel: Channel) -> None:
    """Unreachable once the channel is lost: what it held has gone back, and may have moved on."""
    if channel.is_closed:
        raise Unreachable(
            "The connection to RabbitMQ was lost while its messages were counted: try again."
        )


def _short_string(buffer: bytes, at: int) -> tuple[str, int]:
    """A string of AMQP that begins with its length, and where it ends."""
    end = at + 1 + buffer[at]
    return buffer[at + 1 : end].decode(errors="backslashreplace"), end


async def _ignore(_: DeliveredMessage) -> None:
    """The client library's callback; deliveries go to the tally instead."""
