"""Moving what waits for a subscription when its order is declared, taken away, or divided among
another number of partitions.

No worker may consume meanwhile; publishers go on. First the new queues are bound, and then the old
ones are cut off, so that no message is missed: what is published in between reaches both, and the
inbox skips the second. They are cut off from all messages in one moment, by deleting the exchange
before them: otherwise one that still reaches both would be handled before an earlier one of another
type that reaches the new queue only. A queue without order has no such exchange before it is made
for that. Then what waits in the old queues is copied to the moved queues of the new
partitions, which workers empty before they begin with what has been published since:

    old queue    1 2 3 4 | cut off                      moved queue  1 2 3 4, the last
    new queue          4   5 6                          new queue    4 5 6

A queue is empty once a note comes out of it that was published to it last. It has one consumer at a
time, so whoever else held messages of it has left by then, and these are back. The numbers of its
messages and consumers do not tell that: RabbitMQ 3 counts neither what is held nor who waits.

The copies are made in portions: what a portion holds is acknowledged once RabbitMQ has confirmed
all copies of it. Whoever is interrupted in between leaves the old queues, and the next one goes on.
It copies the portion again that was not acknowledged, so that its messages are delivered again, in
their order: 1 2 3 2 3 4. Until all is moved, no worker starts that declares either number.

The exchange that says the number of partitions cannot be replaced in one step, and whoever declares
a subscription looks at it first and declares the partitions afterwards. So a process of the old
version that does this during the change may bring the old number or the old partitions back:

- It declares the old number while that exchange is missing: we delete it again.
- It looks before we replace the exchange, and has declared partitions by our end: we look for other
  partitions last, and delete them.
- It looks before we replace the exchange, and declares partitions after our end: it looks again
  when it has done so, and cuts them off. The upkeep looks again every minute while it fails.
- It goes on to consume: it looks again once it is counted as a worker, and we count the workers
  again once the exchange is replaced. So one of the two notices the other.

Whatever reaches such partitions also reaches the new ones, which have been bound for longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Literal

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import MOST_PARTITIONS, Order, Subscription
from eventmesh.transports.rabbitmq.connection import CONNECT_TIMEOUT, BrokerConnection
from eventmesh.transports.rabbitmq.headers import attempt_and_deliveries, retry_headers
from eventmesh.transports.rabbitmq.inspection import count_messages, count_twice
from eventmesh.transports.rabbitmq.messages import OutgoingMessage, copy_of
from eventmesh.transports.rabbitmq.ordered.notes import (
    Held,
    LastMoved,
    Moved,
    Note,
    Opened,
    Progress,
    Released,
    Replayed,
    moved,
    read,
    replayed,
    written,
)
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.queue_lock import (
    LOCK_TIMEOUT,
    QueueLock,
    QueueLocked,
    dead_letter_lock,
)
from eventmesh.transports.rabbitmq.topology import Entity, Exchange, Queue, Topology, partition_of
from eventmesh.wire.cloudevents import from_headers

MOST_NOTES = 50_000
"""Notes on retries and dead letters that are moved at most: a worker reads all of a partition when
it starts."""

AT_ONCE = 500
"""Messages that are held at once while they are moved."""

GATHERING = 0.02
"""Seconds for which a portion that is not full waits for the next message."""

QUIET = 0.2
"""Seconds without a message after which we ask RabbitMQ about the queue."""

PATIENCE = 60.0
"""Seconds to wait while somebody else holds the messages of a queue: RabbitMQ notices a consumer
that stands still after at most two heartbeats."""

Kind = Literal["front", "moved", "partition", "plain", "late"]
"""What a queue is for: `plain` is that of a subscription without order."""


class Relocation:
    """Moves the messages of single subscriptions."""

    def __init__(
        self, connection: BrokerConnection, publisher: Publisher, topology: Topology, clock: Clock
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._clock = clock

    async def follow_declarations(self, subscriptions: Sequence[Subscription]) -> None:
        """Move what waits for those of these that had an order and have none, or the reverse.
        UsageError while workers of the other kind consume one."""
        there = await self._signs_there(subscriptions)
        for each in subscriptions:
            if each.order is None:
                if self._shall_lose_order(each, there):
                    await self._take_order_away(each)
                continue
            if self._topology.switching(each, "off") in there:
                # Finish what was interrupted, so that all that waits is in one queue.
                await self._take_order_away(_without_order(each))
                await self._give_order(each)
            elif self._shall_have_order(each, there):
                await self._give_order(each)

    async def declared_otherwise(self, subscriptions: Sequence[Subscription]) -> list[Subscription]:
        """Those of these that others have given an order, or whose order they have taken away, or
        are doing so: `follow_declarations` would undo it."""
        there = await self._signs_there(subscriptions)
        return [
            each
            for each in subscriptions
            if (each.order is None and self._shall_lose_order(each, there))
            or (each.order is not None and self._shall_have_order(each, there))
            or self._topology.switching(each, "off") in there
        ]

    async def check_unchanged(self, subscriptions: Sequence[Subscription]) -> None:
        """UsageError if others have changed the order of one of these, which this process has
        declared before. It does not change it back, as `follow_declarations` would: they may be
        about to consume it, like this process, when an operator resumes it."""
        for each in await self.declared_otherwise(subscriptions):
            change = "was given an order" if each.order is None else "lost its order"
            raise UsageError(
                f"{each.name} {change} by another version of its service since this process "
                f"started: stop this process, and start only one of the two versions."
            )

    async def numbered_otherwise(self, ordered: Sequence[Subscription]) -> list[Subscription]:
        """Those of these, which have an order, whose number of partitions others have changed, or
        are changing."""
        return [
            each for each in ordered if not await self._is_declared(self._workers_exchange(each))
        ]

    async def bring_late_retries(self, subscription: Subscription) -> None:
        """Let those retries come that were delayed when a subscription had no order and are due
        now: before all that waits of their keys. Another time, if somebody else does it, or while
        workers without order consume them, or if it has lost its order."""
        queue = self._topology.late_queue(subscription)
        with suppress(QueueLocked):
            async with self._lock(subscription).held(patience=0.0):
                if await self.declared_otherwise([subscription]):
                    return
                counts = await count_twice(self._connection, [queue], self._clock)
                if queue in counts and not counts[queue].consumers:
                    # A process without order that restores may have bound it again.
                    async with self._connection.guard(), self._connection.channel() as channel:
                        await self._unbind(channel, queue, subscription)
                    await self._empty(queue, "late", subscription)

    async def set_partitions(self, subscription: Subscription, partitions: int) -> int | None:
        """Divide what waits for a subscription among so many partitions; returns how many it had,
        None if it has no order on the broker. UsageError if another change was interrupted."""
        new = self._divided(subscription, partitions)
        workers = self._topology.workers(subscription)
        async with self._lock(subscription).held(PATIENCE):
            numbers = await self._numbers_of_partitions(subscription)
            if not numbers:
                return None
            await self._check_not_switching(subscription)
            if numbers == [partitions] and await self._is_declared(self._workers_exchange(new)):
                return partitions
            await self._check_no_workers(subscription, workers, "try again")
            moving = self._workers_exchange(new, is_moving=True)
            if len(numbers) > 1:
                await self._check_goes_on(subscription, numbers, moving)
            old = [each for each in numbers if each != partitions]
            for each in old:
                await self._check_notes(self._divided(subscription, each))
            await self._replace(moving)
            await self._check_none_has_just_started(subscription, numbers)
            await self._declare(self._topology.for_partitions(new))
            await self._move([self._divided(subscription, each) for each in old], new)
            await self._replace(self._workers_exchange(new))
            for late in await self._numbers_of_partitions(subscription):
                if late != partitions:
                    await self._cut_off(self._divided(subscription, late))
                    await self._delete_partitions(self._divided(subscription, late), new)
        return old[0] if old else partitions

    async def check_numbers(self, subscriptions: Sequence[Subscription]) -> None:
        """To be called once these, which have an order, are declared: UsageError if the number of
        partitions of one was changed meanwhile."""
        for each in subscriptions:
            await self._declare([self._workers_exchange(each)])

    async def cut_off_changed(
        self, subscriptions: Sequence[Subscription], patience: float = LOCK_TIMEOUT
    ) -> None:
        """Let no message reach the partitions of those of these that have another number of them by
        now: nobody consumes these. To be called when declaring them has failed. What cannot be told
        for `patience` seconds is left as it is: a change that is under way deletes them itself."""
        for each in subscriptions:
            with suppress(Unreachable, UsageError):  # the caller has an error that says more
                if await self._is_reached(each):
                    async with self._lock(each).held(patience):
                        await self._cut_off_if_changed(each)

    async def _cut_off_if_changed(self, subscription: Subscription) -> None:
        if await self._is_declared(self._workers_exchange(subscription)):
            return
        for number in await self._numbers_of_partitions(subscription):
            other = self._divided(subscription, number)
            if other != subscription and await self._is_declared(self._workers_exchange(other)):
                await self._cut_off(subscription)

    async def _is_reached(self, subscription: Subscription) -> bool:
        """Whether there is a way of messages to these partitions."""
        partitions = (subscription.order or Order()).partitions
        exchange = self._topology.partitions_exchange(subscription, partitions)
        async with self._connection.guard():
            try:
                async with self._connection.channel() as channel:
                    await channel.exchange_declare(exchange, passive=True)
            except ChannelNotFoundEntity:
                return False
        return True

    async def _check_none_has_just_started(
        self, subscription: Subscription, numbers: Sequence[int]
    ) -> None:
        """UsageError if a worker was counted since we counted them; it goes on if nothing else was
        changed yet."""
        workers = self._topology.workers(subscription)
        try:
            await self._check_no_workers(subscription, workers, "try again")
        except UsageError:
            if len(numbers) == 1:
                await self._replace(self._workers_exchange(self._divided(subscription, *numbers)))
            raise

    async def _check_goes_on(
        self, subscription: Subscription, numbers: Sequence[int], moving: Exchange
    ) -> None:
        """UsageError unless messages are being moved as `moving` says: those that were interrupted
        have moved some of the oldest, so that they must finish before another change."""
        if await self._is_declared(moving):
            return
        for number in numbers:
            interrupted = self._divided(subscription, number)
            if await self._is_declared(self._workers_exchange(interrupted, is_moving=True)):
                raise UsageError(
                    f"A change of {subscription.name} to {number} partitions was interrupted: "
                    f"finish it by `eventmesh partitions set {subscription.name} {number} "
                    f'--reason "…"`.'
                )

    async def _check_not_switching(self, subscription: Subscription) -> None:
        signs = {self._topology.switching(subscription, to): to for to in ("on", "off")}
        for sign in await count_messages(self._connection, signs):
            raise UsageError(
                f"Order of {subscription.name} is being switched {signs[sign]}, which was "
                f"interrupted: start a worker with the version of its service that you had started "
                f"then, and stop it once it has begun to consume."
            )

    async def _numbers_of_partitions(self, subscription: Subscription) -> list[int]:
        """How many partitions the subscription has on the broker: one number, none without an
        order, or several after a change that was interrupted."""
        queues = {
            self._topology.partition_queue(subscription, number, 0): number
            for number in range(1, MOST_PARTITIONS + 1)
        }
        return sorted(queues[each] for each in await count_messages(self._connection, queues))

    async def _give_order(self, subscription: Subscription) -> None:
        plain = _without_order(subscription)
        queue, switching = self._topology.queue(plain), self._topology.switching(subscription, "on")
        async with self._lock(subscription).held():
            there = await count_messages(self._connection, self._signs(subscription))
            if not self._shall_have_order(subscription, there):
                return  # another process has just done it
            await self._check_no_workers(plain, queue)
            if switching not in there:  # otherwise the old queue may be cut off already
                await self._declare(self._topology.for_switching_on(plain))
            await self._declare([Queue(switching), *self._topology.for_subscription(subscription)])
            async with self._connection.guard(), self._connection.channel() as channel:
                await self._unbind(channel, queue, subscription)
                await channel.exchange_delete(switching)
            await self._move([plain], subscription)
            await self._delete_queues([switching])

    async def _unbind(self, channel: Channel, queue: str, subscription: Subscription) -> None:
        """Take the ways away that a queue without order has."""
        for message in subscription.messages:
            exchange = self._topology.message_exchange(message)
            await channel.queue_unbind(queue, self._topology.exchange, message)
            await channel.queue_unbind(queue, exchange, "")

    async def _take_order_away(self, subscription: Subscription) -> None:
        workers = self._topology.workers(subscription)
        on, off = (self._topology.switching(subscription, to) for to in ("on", "off"))
        async with self._lock(subscription).held():
            numbers = await self._numbers_of_partitions(subscription)
            old = [self._divided(subscription, each) for each in numbers]
            await self._check_no_workers(subscription, workers)
            await self._declare([Queue(off), *self._topology.for_subscription(subscription)])
            await self._move(old, subscription)
            async with self._connection.guard(), self._connection.channel() as channel:
                await channel.exchange_delete(workers)
            await self._delete_queues([workers, on, off])

    async def _delete_queues(self, queues: Sequence[str]) -> None:
        self._connection.forget_declared(map(Queue, queues))
        async with self._connection.guard(), self._connection.channel() as channel:
            for queue in queues:
                await channel.queue_delete(queue)

    async def _declare(self, entities: Sequence[Entity]) -> None:
        self._connection.forget_declared(entities)
        await self._connection.ensure_declared(entities)

    async def _is_declared(self, exchange: Exchange) -> bool:
        """Whether there is such an exchange and no other of its name; if there is none, it is
        declared."""
        try:
            await self._declare([exchange])
        except UsageError:
            return False
        return True

    async def _replace(self, exchange: Exchange) -> None:
        """Declare this exchange instead of the one of its name."""
        while not await self._is_declared(exchange):
            async with self._connection.guard(), self._connection.channel() as channel:
                await channel.exchange_delete(exchange.name)

    def _workers_exchange(self, subscription: Subscription, *, is_moving: bool = False) -> Exchange:
        order = subscription.order or Order()
        return self._topology.workers_exchange(subscription, order, is_moving=is_moving)

    def _divided(self, subscription: Subscription, partitions: int) -> Subscription:
        order = subscription.order or Order()
        return replace(subscription, order=replace(order, partitions=partitions))

    async def _signs_there(self, subscriptions: Sequence[Subscription]) -> Container[str]:
        there: set[str] = set()
        # The first of each, then the second: many are not asked for in their order.
        for signs in zip_longest(*map(self._signs, subscriptions)):
            there |= (await count_messages(self._connection, filter(None, signs))).keys()
        return there

    def _signs(self, subscription: Subscription) -> list[str]:
        """The queues that tell whether messages must be moved before it is declared."""
        topology = self._topology
        if subscription.order is None:
            return [topology.workers(subscription)]
        return [
            # Declared in the reverse order. So whoever declares it at the same moment is not taken
            # for a subscription without order.
            topology.late_queue(subscription),
            topology.workers(subscription),
            topology.queues(subscription)[0],
            topology.switching(subscription, "on"),
            topology.switching(subscription, "off"),
        ]

    def _shall_lose_order(self, subscription: Subscription, there: Container[str]) -> bool:
        """Whether it is declared with an order."""
        return self._topology.workers(subscription) in there

    def _shall_have_order(self, subscription: Subscription, there: Container[str]) -> bool:
        """Whether it is declared without order, or order was switched on and that was
        interrupted. If it has partitions, somebody has merely deleted a queue of it."""
        topology = self._topology
        return topology.switching(subscription, "on") in there or (
            topology.late_queue(subscription) in there
            and topology.workers(subscription) not in there
            and topology.queues(subscription)[0] not in there
        )

    def _lock(self, subscription: Subscription) -> QueueLock:
        name = f"{self._topology.workers(subscription)}.moving"
        purpose = f"changing the order or the partitions of {subscription.name}"
        return QueueLock(self._connection, name, self._clock, purpose)

    async def _check_no_workers(
        self, subscription: Subscription, queue: str, afterwards: str = "start this one again"
    ) -> None:
        """UsageError while workers consume this queue. `afterwards` says what to do when they have
        ended."""
        counts = await count_twice(self._connection, [queue], self._clock)
        workers = counts[queue].consumers if queue in counts else 0
        if not workers:
            return
        kind = "with" if queue == self._topology.workers(subscription) else "without"
        if workers == 1:
            raise UsageError(
                f"1 worker {kind} order still consumes {subscription.name}: stop it, wait until it "
                f"has ended, and {afterwards}."
            )
        raise UsageError(
            f"{workers} workers {kind} order still consume {subscription.name}: stop them, wait "
            f"until they have ended, and {afterwards}."
        )

    async def _check_notes(self, old: Subscription) -> None:
        counts = await count_messages(self._connection, self._topology.front_queues(old))
        notes = sum(each.ready for each in counts.values())
        if notes > MOST_NOTES:
            raise UsageError(
                f"{old.name} has {notes:,} notes on retries and dead letters, and not more than "
                f"{MOST_NOTES:,} can be moved: replay or discard its dead letters first."
            )

    async def _move(self, old: Sequence[Subscription], new: Subscription) -> None:
        """Cut the old queues off, move all that waits in them, and delete them, the one by which
        they are found last. The queue of a subscription without order stays, because retries that
        are not due yet name it: RabbitMQ would keep them, and hold up those of others behind."""
        topology = self._topology
        await self._declare(topology.for_moved(new))
        await self._publish([written(Moved(), front) for front in topology.front_queues(new)])
        for each in old:
            if each.order is not None:
                await self._cut_off(each)
            fronts, moved = topology.front_queues(each), topology.moved_queues(each)
            # In the order in which workers would have handled them.
            queues = [*fronts, *moved, *topology.queues(each)]
            there = await count_messages(self._connection, queues)
            for queue in filter(there.__contains__, queues):
                kind: Kind = "plain" if each.order is None else "partition"
                if queue in fronts:
                    kind = "front"
                elif queue in moved:
                    kind = "moved"
                await self._empty(queue, kind, new)
        await self._publish([written(LastMoved(), queue) for queue in topology.moved_queues(new)])
        for each in old:
            self._connection.forget_declared(topology.for_subscription(each))
            if each.order is not None:
                await self._delete_partitions(each, new)

    async def _cut_off(self, old: Subscription) -> None:
        """Let no message reach these partitions any more."""
        topology, partitions = self._topology, (old.order or Order()).partitions
        async with self._connection.guard(), self._connection.channel() as channel:
            await channel.exchange_delete(topology.partitions_exchange(old, partitions))
            await channel.exchange_delete(topology.keyless_exchange(old, partitions))

    async def _delete_partitions(self, old: Subscription, new: Subscription) -> None:
        """Delete these queues, which are empty, except that somebody may have replayed or discarded
        dead letters meanwhile, such as a dashboard that was running before."""
        topology = self._topology
        async with dead_letter_lock(self._connection, topology, old, self._clock).held(PATIENCE):
            fronts = topology.front_queues(old)
            for front, counts in (await count_messages(self._connection, fronts)).items():
                if counts.ready:
                    await self._empty(front, "front", new)
            queues = [*fronts, *topology.moved_queues(old)]
            await self._delete_queues([*queues, *reversed(topology.queues(old))])

    async def _empty(self, queue: str, kind: Kind, new: Subscription) -> None:
        """Copy all that waits in a queue to where it is to wait from now on. The queue of a
        subscription without order is left as soon as nothing waits; the others may be deleted."""
        arrived: asyncio.Queue[DeliveredMessage] = asyncio.Queue()
        has_one_consumer = kind not in ("plain", "late")
        last = Opened(self._clock.new_id())
        async with self._connection.guard(None), self._connection.channel() as channel:
            await channel.basic_qos(prefetch_count=AT_ONCE)
            await channel.basic_consume(queue, arrived.put)
            if has_one_consumer:
                await self._publish([written(last, queue)])
            while batch := await self._next(
                channel, queue, arrived, until_quiet=not has_one_consumer
            ):
                copies = [self._copy(each, kind, new) for each in batch]
                await self._publish([copy for copy in copies if copy is not None])
                tag = batch[-1].delivery.delivery_tag  # type: ignore[union-attr]
                await channel.basic_ack(tag, multiple=True)  # type: ignore[arg-type]
                if has_one_consumer and any(_note_in(each) == last for each in batch):
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        found = await channel.queue_declare(queue, passive=True)
                    if not found.message_count and arrived.empty():
                        return
                    await self._publish([written(last, queue)])  # something came after it

    async def _next(
        self,
        channel: Channel,
        queue: str,
        arrived: asyncio.Queue[DeliveredMessage],
        *,
        until_quiet: bool,
    ) -> list[DeliveredMessage]:
        """The next portion; with `until_quiet`, empty once nothing is left that we can get."""
        batch: list[DeliveredMessage] = []
        since = self._clock.monotonic()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(QUIET):
                    batch = [await arrived.get()]
                while len(batch) < AT_ONCE:
                    async with asyncio.timeout(GATHERING):
                        batch.append(await arrived.get())
                return batch
            if batch:
                return batch
            async with asyncio.timeout(CONNECT_TIMEOUT):
                found = await channel.queue_declare(queue, passive=True)
                await channel.basic_qos(prefetch_count=AT_ONCE)
            if not arrived.empty():
                continue
            if until_quiet and not found.message_count and found.consumer_count == 1:
                return []
            if self._clock.monotonic() - since > PATIENCE:
                raise UsageError(
                    f"Somebody else has held messages of {queue} for {PATIENCE:g} s: end whatever "
                    f"consumes it, and begin again, which goes on."
                )

    async def _publish(self, copies: Sequence[OutgoingMessage]) -> None:
        if not copies:
            return
        rejected = await self._publisher.publish(Batch(list(copies)), ())
        if rejected:
            reason = next(iter(rejected.values()))
            raise UsageError(f"RabbitMQ does not take the messages that are moved: {reason}.")

    def _copy(
        self, message: DeliveredMessage, kind: Kind, new: Subscription
    ) -> OutgoingMessage | None:
        """A message, or a note, as it is to wait from now on; None if it need not."""
        properties = message.header.properties
        headers = properties.headers or {}
        key = from_headers(headers, None, b"").key
        note = _note_in(message)
        if kind not in ("plain", "late") and isinstance(note, Opened | Moved | LastMoved):
            return None
        if kind in ("front", "moved") and isinstance(note, Progress | Held | Released):
            if new.order is None:
                return None
            return written(note, self._topology.front_queue_of(new, note.key, new.order))
        attempt, _ = attempt_and_deliveries(headers)
        if kind == "late" and message.delivery.exchange:  # type: ignore[union-attr]
            # No retry, which comes by the default exchange: the queue was bound again, and got a
            # copy of what also reached the partition, maybe behind earlier messages of its key.
            order = new.order or Order()
            number = partition_of(key, order.partitions)
            queue = self._topology.partition_queue(new, order.partitions, number)
            return copy_of(properties, message.body, "", queue)
        if kind == "late":
            front = self._topology.front_queue_of(new, key, new.order or Order())
            return replayed(properties, message.body, front, attempt=attempt)
        if new.order is None:
            own = retry_headers(headers, attempt)
            return copy_of(properties, message.body, "", self._topology.queue(new), own)
        partitions = new.order.partitions
        if kind == "front" and isinstance(note, Replayed):
            front = self._topology.front_queue_of(new, key, new.order)
            return replayed(properties, message.body, front, note.letter_ids, attempt)
        queue = self._topology.moved_queue(new, partitions, partition_of(key, partitions))
        return moved(properties, message.body, queue, attempt)


def _without_order(subscription: Subscription) -> Subscription:
    return replace(subscription, order=None)


def _note_in(message: DeliveredMessage) -> Note:
    return read(message.header.properties.headers or {}, message.body)
