"""One worker's consumer of a subscription with an order: consumes the partitions that are its own
at the moment, and settles what they deliver.

It has a connection of its own, which has a channel for each partition: closing a channel is the
only way of giving a partition's messages back in their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from aiormq.abc import ChannelFrame

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Delivery, Order, Subscription
from eventmesh.transports.ordering import in_effect
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.rabbitmq.connection import LEAVE_TIMEOUT, BrokerConnection
from eventmesh.transports.rabbitmq.headers import DEAD_LETTER_ID
from eventmesh.transports.rabbitmq.inspection import count_messages
from eventmesh.transports.rabbitmq.messages import OutgoingMessage
from eventmesh.transports.rabbitmq.ordered.assignment import assign
from eventmesh.transports.rabbitmq.ordered.mailbox import Mail
from eventmesh.transports.rabbitmq.ordered.notes import Held, Opened, written
from eventmesh.transports.rabbitmq.ordered.partition import ALONE_AFTER, Message, Partition
from eventmesh.transports.rabbitmq.ordered.workers import INTERVAL, Workers
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.settlement import REJECTED_DELAY, Copies
from eventmesh.transports.rabbitmq.topology import Queue, Topology, window

SETTLING = 0.05
"""Seconds after a change of the workers in which others may follow: many start at a time."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds for which a partition that is to be given up hands out nothing. The pause of each further
try is twice as long, up to the longest."""

PAUSED_SELDOM = 4
"""How many times as long as the pause messages are handed out between two tries."""

NOTING_PAUSE = 1.0
"""Seconds after which we try again to note that suspects are handed out."""

NOTING_TIMEOUT = 1.0
"""Seconds for which a consumer that leaves waits for RabbitMQ to take its last notes."""


class OrderedConsumer:
    """One worker's consumer. `_out` counts the deliveries that are handed out and not settled."""

    def __init__(
        self,
        connection: BrokerConnection,
        publishing: BrokerConnection,
        subscription: Subscription,
        order: Order,
        topology: Topology,
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._publisher = Publisher(publishing)
        self._subscription = subscription
        self._order = order
        self._topology = topology
        self._clock = clock
        self._copies = Copies(topology, subscription, clock)
        self._me = clock.new_id()
        self._workers = Workers(
            self._me,
            topology.workers(subscription),
            Publisher(publishing),
            clock,
            self._reassign,
            self._lose,
        )
        self._partitions: dict[int, Partition] = {}
        self._others_moved = topology.moved_queues(subscription)[1:]
        self._mine: set[int] = set()
        self._giving_up: set[int] = set()
        self._prefetch = 0
        self._out = 0
        self._settling: set[Mail[Message]] = set()
        self._alone: Message | None = None
        """The suspect that was handed out last, of those that may have ended a worker."""
        self._starting: list[Message] = []
        """Suspects of which it is noted next, or being noted, that they are handed out."""
        self._is_noting = False
        self._changed = asyncio.Event()
        self._reassigned = asyncio.Event()
        self._channels = asyncio.Lock()
        self._acknowledging = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._noting: set[asyncio.Task[None]] = set()
        self._lost: str | None = None
        self._bug: BaseException | None = None
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    async def start(self, prefetch: int) -> None:
        """Consume what is ours."""
        self._prefetch = prefetch
        async with self._connection.guard():
            await self._workers.join(self._connection, self._topology.workers(self._subscription))
        # Whoever changes the number of partitions from now on counts us: see `relocation`.
        exchange = self._topology.workers_exchange(self._subscription, self._order)
        await self._connection.ensure_declared([exchange])
        self._do(self._keep_assigned())

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            self._check()
            self._changed.clear()
            # No await from here on, so that a cancellation cannot lose what was taken.
            if taken := self._take(min(limit, self._prefetch - self._out)):
                return taken
            await self._wait_for_change()

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        mine: dict[Mail[Message], Outcome] = {}
        for delivery, outcome in in_effect(
            [(each, outcome) for each, outcome in settlements if self._may_settle(each)]
        ):
            mine.setdefault(delivery.token, outcome)
        if not mine:
            return
        self._check()
        self._settling |= mine.keys()
        try:
            # First, because what follows may have to wait for a broker that takes no messages.
            await self._finish([mail for mail, each in mine.items() if isinstance(each, Done)])
            for mail, outcome in mine.items():
                if isinstance(outcome, RetryAfter):
                    self._retry(mail, outcome)
            await self._bury({m: each for m, each in mine.items() if isinstance(each, Dead)})
        finally:
            self._settling -= mine.keys()
            self._changed.set()

    async def leave(self) -> None:
        """Give back what is unsettled. Never fails: a lost broker has taken it back."""
        self._lose("its context was left")
        if self._noting:
            await asyncio.wait(self._noting, timeout=NOTING_TIMEOUT)
        if tasks := self._tasks | self._noting:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await self._take_starts_back()
        with suppress(Unreachable):
            async with self._connection.guard(LEAVE_TIMEOUT):
                await self._acknowledge(dict.fromkeys(self._partitions.values(), ()))
                leaving = asyncio.gather(
                    self._workers.leave(),
                    *(each.close() for each in self._partitions.values()),
                    return_exceptions=True,
                )
                await leaving
        self._partitions.clear()
        with suppress(Unreachable):
            async with self._connection.guard(LEAVE_TIMEOUT):
                await self._publisher.close()

    async def _take_starts_back(self) -> None:
        """Note that suspects which are not settled have not ended us: they count as if they had not
        been handed out."""
        due = self._clock.now().timestamp()
        notes = [
            written(each.progress(due, starts=each.starts), self._front(partition))
            for partition in self._partitions.values()
            for each in partition.started()
        ]
        if notes:
            with suppress(Unreachable, TimeoutError):
                async with asyncio.timeout(NOTING_TIMEOUT):
                    await self._publisher.publish(Batch(notes), ())

    # --- which partitions are ours ---

    async def _keep_assigned(self) -> None:
        """Consume what is assigned to us, until cancelled or lost."""
        try:
            while self._lost is None:
                async with self._connection.guard(None):
                    await self._change_partitions()
                    for partition in list(self._partitions.values()):
                        partition.forget_unclaimed()
                        if partition.has_moved and not partition.is_closing:
                            await self._look_after_moved(partition)
                    await self._acknowledge(dict.fromkeys(self._partitions.values(), ()))
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL):
                        await self._reassigned.wait()
                        await self._clock.sleep(SETTLING)
                self._reassigned.clear()
                self._workers.beat()
        except Unreachable as error:
            self._lose(str(error))

    async def _change_partitions(self) -> None:
        assigned = assign(self._workers.present(), self._order.partitions)
        mine = {number for number, worker in assigned.items() if worker == self._me}
        self._mine = mine
        for number, partition in self._partitions.items():
            if number not in mine and number not in self._giving_up:
                self._giving_up.add(number)
                self._do(self._give_up(partition))
        new = [
            Partition(
                number, self._clock.new_id(), self._order.after_dead, self._clock, self._changed.set
            )
            for number in sorted(mine - self._partitions.keys())
        ]
        if not new:
            return
        self._partitions |= {partition.number: partition for partition in new}
        async with self._channels:
            await asyncio.gather(*map(self._start, new))
        self._do(self._open(new))

    async def _start(self, partition: Partition) -> None:
        await partition.start(
            self._connection,
            self._topology.partition_queue(
                self._subscription, self._order.partitions, partition.number
            ),
            self._front(partition),
            self._lose,
            window(self._order.partitions),
        )

    async def _open(self, partitions: Sequence[Partition]) -> None:
        """Note in their fronts that these begin, until each has read its note. Whoever consumes a
        front at the moment reads the notes of those that wait to consume it. So they note it again
        once something arrives, and they do consume it. They also do if a note could not be
        written: no partition opens without one, because it would not know what is noted."""
        left = set(partitions)
        while left:
            asking = [each for each in left if each.shall_note_opening]
            for partition in asking:
                partition.shall_note_opening = False
            if asking:
                batch = Batch([written(Opened(each.token), self._front(each)) for each in asking])
                with suppress(Unreachable):
                    await self._publisher.publish(batch, ())
                for place, partition in enumerate(asking):
                    if place not in batch.confirmed:
                        partition.ask_again_later()
            if any(each.has_moved for each in left):
                self._reassign()  # which looks after them
            left = {each for each in left if not (each.is_open or each.is_closing)}
            if not any(each.shall_note_opening for each in left):
                self._changed.clear()
                await self._changed.wait()

    async def _look_after_moved(self, partition: Partition) -> None:
        """Consume the messages that were moved to a partition, and delete their queue once they are
        settled: the first one last, because by it the others are found."""
        most = window(self._order.partitions)
        queue = self._topology.moved_queues(self._subscription)[partition.number]
        async with self._channels:
            if not partition.consumes_moved:
                if await count_messages(self._connection, [queue]):
                    await partition.consume_moved(queue, most)
                else:
                    partition.forget_moved()
            elif partition.has_settled_moved:
                others = self._others_moved
                while partition.number == 0 and others:
                    if await count_messages(self._connection, others[:1]):
                        return
                    del others[0]
                await partition.delete_moved(queue)

    async def _give_up(self, partition: Partition) -> None:
        """Give a partition back once nothing of it is being handled. For that, nothing more of it
        is handed out for a while. If a handler takes longer, the others go on before the next
        try."""
        pause = FIRST_PAUSE
        try:
            while self._lost is None and partition.number not in self._mine:
                partition.is_closing = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        while partition.mailbox.has_taken() and self._lost is None:
                            self._changed.clear()
                            await self._changed.wait()
                if not partition.mailbox.has_taken():
                    async with self._connection.guard(), self._channels:
                        await self._acknowledge({partition: ()})
                        await partition.close()
                    del self._partitions[partition.number]
                    return
                partition.is_closing = False
                self._changed.set()
                await self._clock.sleep(pause * PAUSED_SELDOM)
                pause = min(2 * pause, LONGEST_PAUSE)
        except Unreachable as error:
            self._lose(str(error))
        finally:
            self._giving_up.discard(partition.number)
            self._reassign()

    def _reassign(self) -> None:
        self._reassigned.set()

    # --- what is handed out ---

    def _take(self, limit: int) -> list[Delivery]:
        now = self._clock.monotonic()
        taken: list[Delivery] = []
        for number in list(self._partitions):
            if len(taken) >= limit:
                break
            partition = self._partitions[number]
            if some := partition.take(limit - len(taken), now, self._may_start):
                taken += some
                self._partitions[number] = self._partitions.pop(number)  # the others come first
        self._out += len(taken)
        if self._starting and not self._is_noting:
            self._is_noting = True
            self._do(self._note_starts())
        return taken

    def _may_start(self, suspect: Message) -> bool:
        """Whether it can be handed out: it is noted, and of those that were noted twice before us
        no other is out. If it is not noted, it is added to those that will be."""
        if suspect.starts >= ALONE_AFTER and (other := self._alone) is not suspect:
            if other is not None and (other.delivery is not None or other in self._starting):
                return False
            if suspect.start_is_noted or not self._is_noting:
                self._alone = suspect
        if not suspect.start_is_noted and not self._is_noting:
            self._starting.append(suspect)
        return suspect.start_is_noted

    async def _note_starts(self) -> None:
        """Note that suspects are handed out, which then happens."""
        due = self._clock.now().timestamp()
        batch = Batch(
            [
                written(each.progress(due, starts=each.starts + 1), self._front(each.partition))
                for each in self._starting
            ]
        )
        try:
            with suppress(Unreachable):
                await self._publisher.publish(batch, ())
            for place in batch.confirmed:
                self._starting[place].start_is_noted = True
            if len(batch.confirmed) < len(self._starting):
                await self._clock.sleep(NOTING_PAUSE)
        finally:
            self._starting.clear()
            self._is_noting = False
            self._changed.set()

    async def _wait_for_change(self) -> None:
        times = [each.next_change() for each in self._partitions.values()]
        next_change = min((each for each in times if each is not None), default=None)
        if self._out >= self._prefetch or next_change is None:
            await self._changed.wait()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, next_change - self._clock.monotonic())):
                await self._changed.wait()

    # --- what is settled ---

    def _may_settle(self, delivery: Delivery) -> bool:
        """Whether it is handed out, and no other call is settling it."""
        mail: Mail[Message] = delivery.token
        return mail.message.delivery is delivery and mail not in self._settling

    async def _finish(self, mails: Collection[Mail[Message]]) -> None:
        tags: dict[Partition, list[int]] = {}
        for mail in mails:
            partition = mail.message.partition
            tags.setdefault(partition, []).extend(partition.finish(mail))
        self._out -= len(mails)
        async with self._connection.guard():
            await self._acknowledge(tags)

    async def _acknowledge(self, tags: Mapping[Partition, Iterable[int]]) -> None:
        """Acknowledge these by one write, which is never overtaken by a later one."""
        async with self._acknowledging:
            frames = b"".join(partition.acknowledgements(tags[partition]) for partition in tags)
            if frames and (channel := self._workers.channel) is not None:
                await channel.write_queue.put(ChannelFrame(frames, False))

    def _retry(self, mail: Mail[Message], outcome: RetryAfter) -> None:
        message = mail.message
        self._out -= message.partition.retry(mail, outcome.delay, next_attempt=True)
        note = message.progress(self._clock.now().timestamp() + outcome.delay, starts=0)
        self._do(self._note(written(note, self._front(message.partition))), self._noting)

    async def _bury(self, dead: dict[Mail[Message], Dead]) -> None:
        """Dead-letter these. One that RabbitMQ rejects is delivered again after a while."""
        if not dead:
            return
        for mail in dead:
            self._out -= mail.message.partition.take_back(mail)
        letters: dict[Mail[Message], OutgoingMessage] = {
            mail: self._copies.dead_letter(
                mail.message.original(),
                outcome,
                f"{mail.message.partition.number}/{self._order.partitions}",
            ).message
            for mail, outcome in dead.items()
        }
        holders: dict[Mail[Message], Held] = {}
        if self._order.after_dead == "hold":
            for mail, letter in letters.items():
                letter_id = str((letter.properties.headers or {})[DEAD_LETTER_ID])
                holders[mail] = Held(mail.key, letter_id, mail.message.envelope.id)
                mail.message.partition.hold(holders[mail])
        notes = {
            mail: written(held, self._front(mail.message.partition))
            for mail, held in holders.items()
        }
        needs = [Queue(self._topology.dead_letter_queue(self._subscription))]
        confirmed: set[Mail[Message]] = set()
        try:
            # The notes first: whoever sees a letter may release its key at once, and a letter
            # without a note would not hold its key for the next worker.
            rejected = await self._publish(notes, (), set())
            accepted = {mail: letter for mail, letter in letters.items() if mail not in rejected}
            rejected |= await self._publish(accepted, needs, confirmed)
        finally:
            for mail in holders.keys() - confirmed:
                mail.message.partition.release(holders[mail])
            # Also if the others were interrupted: of these the broker has a copy.
            await self._finish([mail for mail in letters if mail in confirmed])
        if rejected:
            self._log.warning(
                "message rejected by its queue",
                subscription=self._subscription.name,
                messages=len(rejected),
                reason=str(next(iter(rejected.values()))),
                retry_after=REJECTED_DELAY,
            )
            for mail in rejected:
                self._out -= mail.message.partition.retry(mail, REJECTED_DELAY, next_attempt=False)

    async def _publish(
        self,
        messages: Mapping[Mail[Message], OutgoingMessage],
        needs: Sequence[Queue],
        confirmed: set[Mail[Message]],
    ) -> dict[Mail[Message], BaseException]:
        """Publish what was written about these; returns the errors of what was rejected. What was
        confirmed is added to `confirmed`, also if the broker is lost halfway."""
        mails = list(messages)
        batch = Batch(list(messages.values()))
        try:
            rejected = await self._publisher.publish(batch, needs)
        finally:
            confirmed.update(mails[place] for place in batch.confirmed)
        return {mails[place]: error for place, error in rejected.items()}

    async def _note(self, note: OutgoingMessage) -> None:
        """Write a note for which nobody waits, and without which a takeover only begins with an
        earlier attempt."""
        with suppress(Unreachable):
            await self._publisher.publish(Batch([note]), ())

    def _front(self, partition: Partition) -> str:
        return self._topology.front_queue(
            self._subscription, self._order.partitions, partition.number
        )

    # --- the end ---

    def _do(
        self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]] | None = None
    ) -> None:
        tasks = self._tasks if among is None else among
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._notice_bug)

    def _notice_bug(self, task: asyncio.Task[None]) -> None:
        """A task of ours ends by itself, or is cancelled; an error of it is never swallowed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = self._bug or error
            self._lose(repr(error))

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._changed.set()
        self._reassigned.set()

    def _check(self) -> None:
        """Unreachable once the consumer is lost."""
        if self._bug is not None:
            raise self._bug
        if self._lost is not None:
            raise Unreachable(
                f"The broker at {self._connection.address} no longer delivers "
                f"{self._subscription.name}: {self._lost}. Open a new consumer."
            )
