"""The broker of a mesh: that in memory, watched and, in a simulation, disturbed.

Each process has a connection of its own, which is cut when the process dies: what it held is
delivered again. What is published and what became of each delivery goes into the story.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.testing.mesh.story import Mark, Story
from eventmesh.testing.virtual.process import Answer, Process
from eventmesh.transports.base import (
    Consumer,
    Delivery,
    PublishResult,
    Subscription,
)
from eventmesh.transports.memory import MemoryBroker, MemoryTransport
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope


class Record:
    """What the broker has taken, and what became of it."""

    def __init__(self, clock: Clock, progressed: Callable[[], None] = lambda: None) -> None:
        self.story = Story()
        self.published: dict[str, Envelope] = {}
        """Every message, by its id, in the order in which the broker first took it."""
        self.hidden = ""
        """What differs from run to run and is left out of notes: the folder of the databases."""
        self.times = Counter[str]()
        """How often each message was published, by its id."""
        self.retried = set[str]()
        """The subscriptions that have given a message back, to be delivered again later."""
        self.wanted = set[tuple[str, str]]()
        """Each subscription with the unique id of each message that it must get: those that were
        published after it was declared, and those that no subscription had taken until then."""
        self._subscriptions = defaultdict[str, set[str]](set)
        """The names of those that were declared, by the message that they subscribe to."""
        self._unrouted: list[Envelope] = []
        """What was published before any subscription to it was declared."""
        self._settled = set[str]()
        """The ids of the messages that some subscription has settled, however it ended."""
        self.taken = 0
        """How many messages workers have published, counted each time."""
        self._clock = clock
        self._progressed = progressed

    def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            for message in subscription.messages:
                self._subscriptions[message].add(subscription.name)
        waiting, self._unrouted = self._unrouted, []
        for envelope in waiting:
            self._route(envelope)

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        self._progressed()
        for envelope in envelopes:
            self._route(envelope)
            self.published.setdefault(envelope.id, envelope)
            self.times[envelope.id] += 1
            self.story.number(envelope.id)

    def settle(
        self, subscription: str, process: Process | None, delivery: Delivery, outcome: Outcome
    ) -> None:
        self._progressed()
        self._settled.add(delivery.envelope.id)
        mark: Mark = "handled"
        text = self.label(delivery.envelope)
        if process is not None and process.number:
            text = f"{text} by {process.name}"
        match outcome:
            case Done():
                pass
            case RetryAfter(delay):
                mark, text = "retried", f"{text} again in {delay:g} s"
                self.retried.add(subscription)
            case Dead(reason, _):
                mark, text = "dead", f"{text} dead: {reason}"
        origin = delivery.envelope.attributes.get("source", "/?").split("/")[1]
        where = "test" if process is None else process.service
        self.story.add(self._clock.monotonic(), mark, where, text, origin)

    def _route(self, envelope: Envelope) -> None:
        if names := self._subscriptions.get(envelope.name):
            message_id = envelope.unique_id
            self.wanted.update((name, message_id) for name in names)
        else:
            self._unrouted.append(envelope)

    def not_taken(self) -> list[Envelope]:
        """The messages that no subscription has settled yet: they wait, or nobody subscribes."""
        return [each for each in self.published.values() if each.id not in self._settled]

    def note(self, where: str, text: str, mark: Mark = "note") -> None:
        if self.hidden:
            text = text.replace(self.hidden, "")
        self.story.add(self._clock.monotonic(), mark, where, text)

    def label(self, envelope: Envelope) -> str:
        """A message as people speak of it: `order_placed #3`."""
        return f"{envelope.name.rpartition('.')[2]} #{self.story.number(envelope.id)}"


class MeshTransport(MemoryTransport):
    """One process's connection to the broker."""

    def __init__(
        self, clock: Clock, broker: MemoryBroker, record: Record, process: Process | None = None
    ) -> None:
        super().__init__(clock, broker)
        self._record = record
        self._process = process
        if process is not None:
            process.connections.append(self)

    def cut(self) -> None:
        """The process has died: what it held goes back."""
        self._closed = True
        for consumer in list(self._consumers):
            consumer.lose()
            self._consumers.discard(consumer)
            self.broker.consumers.discard(consumer)

    def held(self) -> Iterator[str]:
        """The subscription of each message that was received and is not settled."""
        for consumer in self._consumers:
            yield from [consumer.subscription] * len(consumer._held)

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await super().declare(subscriptions)
        self._record.declare(subscriptions)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        answer = await self._answer("publish")
        if answer.error == "before":
            return PublishResult.interrupted(envelopes, _lost())
        result = await super().publish(envelopes)
        if result.error is None:
            await super().publish(self._copies(envelopes))
            self._record.publish(envelopes)
        if answer.error == "after":
            return PublishResult.interrupted(envelopes, _lost())
        return result

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        if (await self._answer("consume")).error:
            raise _lost()
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield _MeshConsumer(consumer, subscription.name, self, self._record)

    def _copies(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        """Those that the broker stores once more, as often as it does."""
        process = self._process
        if process is None or process.disturbances is None:
            return []
        first = self._record.taken + 1
        self._record.taken += len(envelopes)
        return [
            envelope
            for number, envelope in enumerate(envelopes, first)
            for _ in range(process.disturbances.copies(number) - 1)
        ]

    async def _answer(self, call: str) -> Answer:
        """How this call is answered, once its delay is over."""
        process = self._process
        if process is None or process.disturbances is None:
            return Answer()
        process.calls += 1
        answer = process.disturbances.answer(process, "broker", call)
        if answer.delay:
            await asyncio.sleep(answer.delay)
        task = asyncio.current_task()
        if task is not None:
            process.take_step(task)
        if not process.is_running:
            await process.running_again()
        return answer


class _MeshConsumer:
    def __init__(
        self, consumer: Consumer, subscription: str, transport: MeshTransport, record: Record
    ) -> None:
        self._consumer = consumer
        self._subscription = subscription
        self._transport = transport
        self._record = record

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return await self._consumer.receive(limit)

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        process = self._transport._process
        answer = await self._transport._answer("settle")
        if answer.error == "before":
            self._consumer.lose()  # type: ignore[attr-defined]  # the broker in memory's
            raise _lost()
        await self._consumer.settle(settlements)
        for delivery, outcome in settlements:
            self._record.settle(self._subscription, process, delivery, outcome)
        if answer.error == "after":
            self._consumer.lose()  # type: ignore[attr-defined]  # as above
            raise _lost()


def _lost() -> Unreachable:
    return Unreachable("The connection to the broker of the mesh was lost.")
