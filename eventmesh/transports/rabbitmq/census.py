"""Counting what RabbitMQ holds. It shows a message only by handing it out; so all that waits in a
queue is taken at once, ahead of the workers, counted by its headers, and given back at once.

Taken is the whole queue, by consumers of the highest priority: a worker that got later messages
meanwhile would have them before the earlier ones. It is given back by closing the channel, by which
RabbitMQ puts it in front, in its order, in one step (tried on 3.10 and 4.0; cancelling or refusing
first mixes it). Meanwhile workers go on with what they have and get nothing new: about a third of a
second, and with 50,000 messages some seconds more. A queue in which nothing waits is left alone.

What it costs, while what was counted still waits. RabbitMQ counts a delivery of each: from the
fourth on, a service handles it alone. And it puts what a worker gives back behind what was given
back before: when a worker stops or dies, the messages that it held come after those that were
counted, instead of before them. Count while no worker runs that is about to stop.

Not seen is what workers hold, which RabbitMQ tells nobody; a retry that a broker which has just
started is still moving on; and subscriptions of which the caller does not know.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription
from eventmesh.transports.census import Census, State
from eventmesh.transports.rabbitmq.connection import (
    CONNECT_TIMEOUT,
    LEAVE_TIMEOUT,
    Link,
    close_channel,
)
from eventmesh.transports.rabbitmq.frames import BODY, DELIVER, HEADER, METHOD, Arrived
from eventmesh.transports.rabbitmq.topology import DELAY_STEPS, Topology
from eventmesh.wire.cloudevents import from_headers
from eventmesh.wire.envelope import Envelope

QUIET = 0.15
"""Seconds without a change after which nothing is on its way any more: what a consumer that has
left held shows up some milliseconds later."""

STUCK = 10.0
"""Seconds without any progress after which RabbitMQ does not hand out what it says is waiting."""

STILL = 0.5
"""Seconds without a change after which nobody is about to take what was given back."""

LOCK_PATIENCE = 5.0
"""Seconds to wait for another census to end."""

AHEAD = 1000
"""The priority of our consumers; workers have none."""

MOST_HELD = 65_535
"""How many messages a consumer of AMQP can hold."""

MOST_CONSUMERS = 31
"""Of one queue. RabbitMQ gives back consumer by consumer, in the order of their tags up to here."""

_LONGLONG = struct.Struct(">Q")
_BODY_SIZE_AT = 4

Seen = Callable[[str, str, Envelope], None]
"""Gets the queue, the routing key and the attributes of a message."""


@dataclass(frozen=True, slots=True)
class _Queue:
    """What a queue says of itself: messages that wait, and consumers."""

    ready: int
    consumers: int


class LookedInto(Unreachable):
    """Somebody else is looking into the queues."""


class Looking:
    """One census."""

    def __init__(self, link: Link, topology: Topology, clock: Clock) -> None:
        self._link = link
        self._topology = topology
        self._clock = clock
        self._found = Census()

    async def count(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        untouched: Collection[str],
    ) -> Census:
        """What `Transport.census` promises."""
        async with self.alone():
            waiting = await self._delayed(hidden=bool(untouched))
            # Held to the end: what waits for its retry cannot move on into a queue behind us.
            async with self.holding(waiting, self._seeing_retries(subscriptions, messages)):
                for subscription in subscriptions:
                    await self._subscription(subscription, subscription.name in untouched)
            await self._unrouted(sorted(messages))
        return self._found

    @asynccontextmanager
    async def alone(self, patience: float = LOCK_PATIENCE) -> AsyncIterator[None]:
        """Two at a time would each see a part, and mix it. The lock is a queue that only this
        connection may use, and that ends with it. LookedInto if another has it for longer than so
        many seconds."""
        name = self._topology.census
        channel = await self._lock(name, patience)
        try:
            yield
        finally:
            with suppress(Unreachable):
                async with self._link.call(LEAVE_TIMEOUT):
                    await channel.queue_delete(name)
                    await close_channel(channel)

    async def _lock(self, name: str, patience: float) -> Channel:
        """The channel that holds the lock. That of a connection that was cut goes with it, which
        the broker takes a moment to notice."""
        until = self._clock.monotonic() + patience
        while True:
            async with self._link.call(None):
                channel = await self._link.new_channel()
                try:
                    await channel.queue_declare(name, exclusive=True, auto_delete=True)
                    return channel
                except ChannelLockedResource:
                    if self._clock.monotonic() >= until:
                        raise LookedInto(
                            "Somebody else is counting the messages of this broker: wait until "
                            "they have finished, and try again."
                        ) from None
            await self._clock.sleep(LOCK_PATIENCE / 20)

    async def _ask(self, names: Iterable[str]) -> dict[str, _Queue]:
        """Those of these queues that there are. Asked twice, and the higher numbers count."""
        first = await self.ask_once(names)
        await self._clock.sleep(QUIET)
        second = await self.ask_once(first)
        return {
            name: _Queue(
                max(queue.ready, first[name].ready), max(queue.consumers, first[name].consumers)
            )
            for name, queue in second.items()
        }

    async def ask_once(self, names: Iterable[str]) -> dict[str, _Queue]:
        found: dict[str, _Queue] = {}
        missing = deque(names)
        async with self._link.call(None):
            # One by one: the client library mixes up channels that are closed and opened at once.
            while missing:
                with suppress(ChannelNotFoundEntity):  # which has closed the channel
                    async with self._link.channel() as channel:
                        while missing:
                            name = missing.popleft()
                            async with asyncio.timeout(CONNECT_TIMEOUT):
                                told = await channel.queue_declare(name, passive=True)
                            found[name] = _Queue(told.message_count or 0, told.consumer_count or 0)
        return found

    async def _delayed(self, *, hidden: bool) -> list[str]:
        """The queues in which retries wait. All subscriptions share them, and RabbitMQ 4 goes on
        counting deliveries where a retry goes: so where one is not to be touched, none is."""
        told = await self._ask(self._topology.delay(step) for step in DELAY_STEPS)
        waiting = [name for name, queue in told.items() if queue.ready]
        if not hidden or not waiting:
            return waiting
        number = sum(told[name].ready for name in waiting)
        self._found.hide(
            "",
            "delayed",
            number,
            "RabbitMQ would count a delivery of each, and among them may be some for a service "
            "without a database, which would take them for deadly: let them be handled",
        )
        return []

    async def _subscription(self, subscription: Subscription, untouched: bool) -> None:
        queue, dead = self._topology.queue(subscription), self._topology.dead(subscription)
        queues = await self._ask([queue, dead])
        name, working = subscription.name, queues.get(queue, _Queue(0, 0))
        taken = [dead] if dead in queues and queues[dead].ready else []
        if working.ready:
            if why := _why_hidden(working, untouched):
                self._found.hide(name, "ready", working.ready, why)
            else:
                taken.append(queue)
        states: dict[str, State] = {queue: "ready", dead: "dead"}

        def see(came_from: str, _: str, envelope: Envelope) -> None:
            self._found.add(name, envelope, states[came_from])

        async with self.holding(taken, see) as others:
            pass
        if working.consumers or others.get(queue, 0) > 0:
            self._found.hide(
                name,
                "in_flight",
                None,
                "workers consume it, and RabbitMQ does not tell what they hold: stop them for a "
                "moment",
            )

    def _seeing_retries(
        self, subscriptions: Sequence[Subscription], messages: Collection[str]
    ) -> Seen:
        """Counts what is delayed by the queue to which it will go."""
        names = {self._topology.queue(each): each.name for each in subscriptions}

        def see(_: str, routing_key: str, envelope: Envelope) -> None:
            name = names.get(routing_key)
            if name is None and envelope.name in messages:
                name = routing_key.removeprefix(self._topology.queue_prefix)
            if name is not None:
                self._found.add(name, envelope, "delayed")

        return see

    async def _unrouted(self, messages: Sequence[str]) -> None:
        kept = [
            *map(self._topology.kept, messages),
            *([self._topology.foreign] if messages else ()),
        ]

        def see(_: str, __: str, envelope: Envelope) -> None:
            self._found.add("", envelope, "unrouted")

        waiting = [name for name, queue in (await self._ask(kept)).items() if queue.ready]
        async with self.holding(waiting, see):
            pass
        await self.until_still(waiting)

    async def until_still(self, queues: Sequence[str]) -> None:
        """Return once what was given back is there again, and nobody is taking it: who declares a
        subscription now finds it; who did so while we held it has not."""
        ready = None
        while queues:
            before, told = ready, await self.ask_once(queues)
            ready = sum(queue.ready for queue in told.values())
            if ready == before:
                return
            await self._clock.sleep(STILL)

    @asynccontextmanager
    async def holding(self, queues: Sequence[str], see: Seen) -> AsyncIterator[dict[str, int]]:
        """Hold all that waits in these queues, and what comes into them, until the context is left;
        entered once all of it was seen. Gives how many consumers each has beside ours."""
        if not queues:
            yield {}
            return
        tally = _Tally(see, queues)
        async with self._link.call(None):
            channel = await self._link.new_channel()
        try:
            async with self._link.call(None):
                self._link.tap(channel, tally)
                held = await self.ask_once(queues)
                await channel.basic_qos(prefetch_count=MOST_HELD)
                ours = {name: _consumers_for(queue.ready) for name, queue in held.items()}
                for name, count in ours.items():
                    for number in range(count):
                        await channel.basic_consume(
                            name,
                            _not_called,
                            consumer_tag=f"{number:02}-{queues.index(name)}",
                            arguments={"x-priority": AHEAD - number},
                        )
                others = await self._until_all_seen(channel, ours, tally)
            yield others
            _still_holding(channel)
        finally:
            with suppress(Unreachable):  # then the broker takes it back by itself
                async with self._link.call(LEAVE_TIMEOUT):
                    await close_channel(channel)

    async def _until_all_seen(
        self, channel: Channel, ours: Mapping[str, int], tally: _Tally
    ) -> dict[str, int]:
        """Return once nothing waits any more, and nothing more comes; by how many consumers each
        queue has beside ours."""
        moved_at, seen = self._clock.monotonic(), -1
        while True:
            before = tally.count
            await self._clock.sleep(QUIET)
            told = await self.ask_once(ours)
            _still_holding(channel)
            if tally.count == before and not any(queue.ready for queue in told.values()):
                return {name: queue.consumers - ours[name] for name, queue in told.items()}
            if tally.count != seen:
                moved_at, seen = self._clock.monotonic(), tally.count
            elif self._clock.monotonic() - moved_at > STUCK:
                raise Unreachable(
                    f"RabbitMQ says that messages wait in {', '.join(told)}, and does not hand "
                    f"them out. See its log, and try again."
                )


class _Tally:
    """Sees the messages that are delivered on a channel, and drops their data."""

    def __init__(self, see: Seen, queues: Sequence[str]) -> None:
        self.count = 0
        self._see = see
        self._queues = queues
        self._queue = self._routing_key = ""
        self._expecting = False
        self._missing = 0

    def take(self, kind: int, buffer: bytes, start: int, end: int) -> bool:
        if kind == METHOD and buffer.startswith(DELIVER, start):
            at = start + len(DELIVER)
            tag, at = _short_text(buffer, at)
            self._queue = self._queues[int(tag.partition("-")[2])]
            _, at = _short_text(buffer, at + 9)  # past delivery tag and redelivered: the exchange
            self._routing_key, _ = _short_text(buffer, at)
            self._expecting = True
            return True
        if kind == HEADER and self._expecting:
            self._expecting = False
            (self._missing,) = _LONGLONG.unpack_from(buffer, start + _BODY_SIZE_AT)
            content_type, headers = Arrived(0, buffer[start:end], b"").essentials()
            self.count += 1
            self._see(self._queue, self._routing_key, from_headers(headers, content_type, b""))
            return True
        if kind == BODY and self._missing > 0:
            self._missing -= end - start
            return True
        return False


def _still_holding(channel: Channel) -> None:
    """Unreachable once the channel is lost: what it held has gone back, and may have moved on."""
    if channel.is_closed:
        raise Unreachable(
            "The connection to RabbitMQ was lost while its messages were counted: try again."
        )


def _short_text(buffer: bytes, at: int) -> tuple[str, int]:
    """A text of AMQP that begins with its length, and where the next begins."""
    end = at + 1 + buffer[at]
    return buffer[at + 1 : end].decode(errors="backslashreplace"), end


def _consumers_for(ready: int) -> int:
    """One more than are needed now, for what is published meanwhile."""
    return min(ready // MOST_HELD + 2, MOST_CONSUMERS)


def _why_hidden(queue: _Queue, untouched: bool) -> str | None:
    """Why what waits in a queue must not be taken; None where it may be."""
    if untouched:
        return (
            "RabbitMQ would count a delivery of each, and the service, which has no database, "
            "takes a message that was delivered often for deadly: let them be handled"
        )
    if queue.consumers and queue.ready >= MOST_HELD:
        return (
            "they are more than can be taken at once while workers consume: stop these, or let "
            "them catch up"
        )
    if queue.ready >= MOST_HELD * (MOST_CONSUMERS - 1):
        return "they are more than RabbitMQ lets anybody hold: let them be handled"
    return None


async def _not_called(_: DeliveredMessage) -> None:
    """Deliveries go to the tally."""
