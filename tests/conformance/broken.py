"""Transports that each break one guarantee, as real ones have."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from types import MappingProxyType

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    Consumer,
    DeadLetter,
    Delivery,
    Order,
    PublishResult,
    Subscription,
    SubscriptionStats,
    Transport,
    publish_or_raise,
)
from eventmesh.transports.census import Census
from eventmesh.transports.finding import Found
from eventmesh.transports.memory import MemoryBroker, MemoryTransport
from eventmesh.transports.outcome import DONE, Dead, Done, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope
from tests.conformance.rigs import RefusingBroker

Settlements = Sequence[tuple[Delivery, Outcome]]


class BrokenConsumer:
    """Passes everything on to a consumer that works; subclasses break something."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer

    async def receive(self, limit: int) -> Sequence[Delivery]:
        return await self.consumer.receive(limit)

    async def settle(self, settlements: Settlements) -> None:
        await self.consumer.settle(settlements)


class BrokenTransport(MemoryTransport):
    """Works, until a subclass breaks something or names a consumer that does."""

    consumer: type[BrokenConsumer] = BrokenConsumer
    made_by: type[MemoryBroker] = RefusingBroker

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(SystemClock(), broker)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        refused: dict[str, str] = {}
        held_keys: set[str | None] = set()
        for envelope in envelopes:
            if self.refuses(envelope) or envelope.key in held_keys:
                refused[envelope.id] = "refused, or behind one that is"
                held_keys.add(envelope.key)
            elif (result := await super().publish([envelope])).error is not None:
                return PublishResult.interrupted(envelopes, result.error)
        return PublishResult(refused)

    def refuses(self, envelope: Envelope) -> bool:
        return isinstance(self.broker, RefusingBroker) and envelope.name in self.broker.refused

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield self.consumer(consumer)


class LosesEverySecond(BrokenTransport):
    published = 0

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        for envelope in envelopes:
            self.published += 1
            if self.published % 2:
                await super().publish([envelope])
        return ALL_CONFIRMED


class DeliversToTwo(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await super().publish([each for each in envelopes for _ in range(2)])


class PublishesBackwards(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await super().publish(envelopes[::-1])


class KnowsOnlyAscii(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await super().publish(
            [
                Envelope(
                    {
                        name: value.encode("ascii", "replace").decode()
                        for name, value in envelope.attributes.items()
                    },
                    envelope.data,
                )
                for envelope in envelopes
            ]
        )


class BeginsAtTheEnd(BrokenTransport):
    """As a consumer group of Redis created at `$`, by the first consumer."""

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        waiting = (await self.stats(subscription)).ready
        async with super().consume(subscription, prefetch=waiting + 1) as consumer:
            if waiting:
                backlog = await consumer.receive(waiting)
                await consumer.settle([(delivery, DONE) for delivery in backlog])
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield consumer


class DropsTheUnrouted(BrokenTransport):
    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.names: set[str] = set()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        self.names.update(name for each in subscriptions for name in each.messages)
        await super().declare(subscriptions)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await super().publish([each for each in envelopes if each.name in self.names])


class HasNoPrefetch(BrokenTransport):
    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        async with super().consume(subscription, prefetch=prefetch + 1) as consumer:
            yield consumer


class CountsEachMessageAlone(BrokenTransport):
    """As XREADGROUP, whose COUNT is for each stream."""

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        wide = prefetch * len(subscription.messages)
        async with super().consume(subscription, prefetch=wide) as consumer:
            yield consumer


class NeverGivesBack(BrokenTransport):
    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.never_left: list[AbstractAsyncContextManager[Consumer]] = []

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        self.never_left.append(super().consume(subscription, prefetch=prefetch))
        yield BrokenConsumer(await self.never_left[-1].__aenter__())


class ForgetsWhatIsDone(BrokenTransport):
    class consumer(BrokenConsumer):  # noqa: N801 - it is the attribute `consumer`
        async def settle(self, settlements: Settlements) -> None:
            await super().settle([each for each in settlements if not isinstance(each[1], Done)])


class SettlesAllBefore(BrokenTransport):
    """As an AMQP acknowledgement of several that was meant for one."""

    class consumer(BrokenConsumer):  # noqa: N801
        def __init__(self, consumer: Consumer) -> None:
            super().__init__(consumer)
            self.received: list[Delivery] = []

        async def receive(self, limit: int) -> Sequence[Delivery]:
            got = await super().receive(limit)
            self.received.extend(got)
            return got

        async def settle(self, settlements: Settlements) -> None:
            for delivery, outcome in settlements:
                until = self.received.index(delivery) + 1
                await super().settle([(each, outcome) for each in self.received[:until]])


class AcknowledgesOnReceipt(BrokenTransport):
    class consumer(BrokenConsumer):  # noqa: N801
        async def receive(self, limit: int) -> Sequence[Delivery]:
            got = await super().receive(limit)
            await super().settle([(delivery, DONE) for delivery in got])
            await asyncio.sleep(0.005)  # where a cancellation loses what was taken
            return got


class RetriesAtOnce(BrokenTransport):
    class consumer(BrokenConsumer):  # noqa: N801
        async def settle(self, settlements: Settlements) -> None:
            await super().settle(
                [
                    (delivery, RetryAfter(0.0) if isinstance(outcome, RetryAfter) else outcome)
                    for delivery, outcome in settlements
                ]
            )


class HasOneQueueForAllDelays(BrokenTransport):
    """As messages with a TTL each in one queue of RabbitMQ: only its head expires."""

    class consumer(BrokenConsumer):  # noqa: N801
        longest = 0.0

        async def settle(self, settlements: Settlements) -> None:
            for delivery, outcome in settlements:
                if isinstance(outcome, RetryAfter):
                    self.longest = max(self.longest, outcome.delay)
                    outcome = replace(outcome, delay=self.longest)
                await super().settle([(delivery, outcome)])


class DropsTheDead(BrokenTransport):
    class consumer(BrokenConsumer):  # noqa: N801
        async def settle(self, settlements: Settlements) -> None:
            await super().settle(
                [
                    (delivery, DONE if isinstance(outcome, Dead) else outcome)
                    for delivery, outcome in settlements
                ]
            )


class ListsEveryLetter(BrokenTransport):
    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        return list(self.broker.queues[subscription.name].dead.values())[:limit]


class IgnoresTheBoundsOfAList(BrokenTransport):
    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        return await super().dead_letters(subscription, limit=limit)


class StoresShortTextsOnly(BrokenTransport):
    class consumer(BrokenConsumer):  # noqa: N801
        async def settle(self, settlements: Settlements) -> None:
            for _, outcome in settlements:
                if isinstance(outcome, Dead) and len(outcome.error) > 1_000:
                    raise Unreachable("the error is too long")
            await super().settle(settlements)


class StealsFromTheSlow(BrokenTransport):
    """Takes a delivery back after the visibility timeout, whether its worker lives or not."""

    class consumer(BrokenConsumer):  # noqa: N801
        async def receive(self, limit: int) -> Sequence[Delivery]:
            got = await super().receive(limit)
            back = [(delivery, RetryAfter(0.0)) for delivery in got]
            loop = asyncio.get_running_loop()
            loop.call_later(
                0.2, lambda: asyncio.ensure_future(super(type(self), self).settle(back))
            )
            return got


class RetriesTheSettled(BrokenTransport):
    """Republishes on a retry without looking whether the delivery is still its own."""

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield Republishing(consumer, self)


class Republishing(BrokenConsumer):
    def __init__(self, consumer: Consumer, transport: Transport) -> None:
        super().__init__(consumer)
        self.transport = transport

    async def settle(self, settlements: Settlements) -> None:
        await super().settle([(delivery, DONE) for delivery, _ in settlements])
        await publish_or_raise(
            self.transport,
            [each.envelope for each, outcome in settlements if isinstance(outcome, RetryAfter)],
        )


class ReturnsToTheEnd(BrokenTransport):
    """As a quorum queue of RabbitMQ 4 that has no delivery limit."""

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            noting = NotingWhatIsHeld(consumer)
            yield noting
            held = list(noting.held)
            await noting.settle([(delivery, DONE) for delivery in held])
        await publish_or_raise(self, [delivery.envelope for delivery in held])


class NotingWhatIsHeld(BrokenConsumer):
    def __init__(self, consumer: Consumer) -> None:
        super().__init__(consumer)
        self.held: list[Delivery] = []

    async def receive(self, limit: int) -> Sequence[Delivery]:
        got = await super().receive(limit)
        self.held.extend(got)
        return got

    async def settle(self, settlements: Settlements) -> None:
        await super().settle(settlements)
        settled = [delivery for delivery, _ in settlements]
        self.held = [delivery for delivery in self.held if delivery not in settled]


class CutsShortTheBig(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await super().publish([replace(each, data=each.data[:65536]) for each in envelopes])


class StopsAtARefusal(BrokenTransport):
    """Names the message that it refuses, and not those behind it that it never sent."""

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        for envelope in envelopes:
            if len(envelope.attributes.get("odd", "")) > 1000:
                return PublishResult({envelope.id: "it is odd"})
            await super().publish([envelope])
        return ALL_CONFIRMED


class StoresWhatIsBehindARefusal(BrokenTransport):
    """As a transaction that goes on after a command that failed."""

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        refused = [each.id for each in envelopes if self.refuses(each)]
        await super().publish([each for each in envelopes if each.id not in refused])
        return PublishResult(dict.fromkeys(refused, "refused"))


class PublishesForOneTaskOnly(BrokenTransport):
    """Keeps a batch where the next call puts its own."""

    batch: Sequence[Envelope] = ()

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        self.batch = envelopes
        await asyncio.sleep(0)
        return await super().publish(self.batch)


class CountsWhatIsFetched(BrokenTransport):
    """As a queue that counts what it sent, handed out or not."""

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield Fetching(consumer, prefetch)


class Fetching(BrokenConsumer):
    def __init__(self, consumer: Consumer, prefetch: int) -> None:
        super().__init__(consumer)
        self.prefetch = prefetch
        self.fetched: deque[Delivery] = deque()

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if not self.fetched:
            self.fetched.extend(await super().receive(self.prefetch))
        return [self.fetched.popleft() for _ in range(min(limit, len(self.fetched)))]


class CountsNoDeaths(BrokenTransport):
    class consumer(BrokenConsumer):  # noqa: N801
        async def receive(self, limit: int) -> Sequence[Delivery]:
            return [replace(each, deliveries=1) for each in await super().receive(limit)]


class TellsZeroForUnknown(BrokenTransport):
    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        return replace(await super().stats(subscription), in_flight=0)


class CountsWhatNobodyDeclared(BrokenTransport):
    """As a queue that is declared in order to count it."""

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        await self.declare([subscription])
        return await super().stats(subscription)


class TellsNoReason(BrokenTransport):
    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        return replace(await super().stats(subscription), in_flight=None)


class ForgetsTheDelayed(BrokenTransport):
    """As a look at the queues alone, where retries wait somewhere else."""

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        found = await super().census(subscriptions, messages, untouched=untouched)
        found.lots = {kind: lot for kind, lot in found.lots.items() if kind.state != "delayed"}
        return found


class FindsTheReadyOnly(BrokenTransport):
    """As a look at the queues alone, where retries and what is in flight are somewhere else."""

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        found = await super().find(subscriptions, messages, wanted)
        seen = tuple(each for each in found.messages if each.state in ("ready", "unrouted"))
        return replace(found, messages=seen)


class CountsByTakingOut(BrokenTransport):
    """As a shovel: takes what waits, counts it, and puts it back behind what came meanwhile."""

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        found = await super().census(subscriptions, messages, untouched=untouched)
        queues = [self.broker.queues[each.name] for each in subscriptions]
        taken = [(queue, queue.waiting) for queue in queues]
        for queue in queues:
            queue.waiting = []
        await asyncio.sleep(0.05)
        for queue, waited in taken:
            for parcel in sorted(waited):
                queue.put(replace(parcel, visible_at=SystemClock().monotonic()))
        return found


class PurgesTheNewest(BrokenTransport):
    """As a queue with a length limit that rejects what is published beyond it."""

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        broker = self.broker
        broker.unrouted = broker.unrouted[::-1]
        try:
            return await super().purge_unrouted(
                message, subscriptions, keep=keep, older_than=older_than
            )
        finally:
            broker.unrouted = broker.unrouted[::-1]


class KeepsWhatItRoutes(BrokenTransport):
    """As a broker that drops acknowledgements when their channel is closed."""

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        kept = list(self.broker.unrouted)
        await super().declare(subscriptions)
        self.broker.unrouted += kept


class WaitsOnWhenClosed(BrokenTransport):
    async def close(self) -> None:
        pass


class ConnectsAgainUnasked(BrokenTransport):
    """As a pool of connections that opens one whenever it has none."""

    async def close(self) -> None:
        await super().close()
        await self.connect()


class SleepsThroughALoss(BrokenTransport):
    """As a read that no time-out ends, on a connection that is gone."""

    class consumer(BrokenConsumer):  # noqa: N801
        async def receive(self, limit: int) -> Sequence[Delivery]:
            try:
                return await super().receive(limit)
            except Unreachable:
                await asyncio.Event().wait()
                raise


class KeepsDelaysToItself(BrokenTransport):
    """As a process that sleeps until a retry is due."""

    class made_by(MemoryBroker):  # noqa: N801
        def stop(self) -> None:
            super().stop()
            now = SystemClock().monotonic()
            for queue in self.queues.values():
                queue.waiting = [each for each in queue.waiting if each.visible_at <= now]


class DeclaresOnlyOnce(BrokenTransport):
    """Remembers what it has made, and not that the broker may forget it."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.declared: set[Subscription] = set()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        new = [each for each in subscriptions if each not in self.declared]
        self.declared.update(new)
        await super().declare(new)


class KeepsNoOrder(BrokenTransport):
    """As competing consumers of one queue."""

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await super().declare([replace(each, order=None) for each in subscriptions])


class SettlesTheDoneFirst(BrokenTransport):
    """As acknowledgements that are sent before anything else is."""

    class consumer(BrokenConsumer):  # noqa: N801
        async def settle(self, settlements: Settlements) -> None:
            for pair in sorted(settlements, key=lambda pair: not isinstance(pair[1], Done)):
                await super().settle([pair])


class ReplaysToTheEnd(BrokenTransport):
    """As a tool that moves messages from the queue of dead letters to the end of another."""

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        letters = await super().dead_letters(subscription, limit=len(ids))
        found = await super().discard(subscription, ids)
        await super().publish([each.envelope for each in letters if each.id in found])
        return found


class HoldsNoKey(BrokenTransport):
    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await super().declare(
            [replace(each, order=each.order and Order()) for each in subscriptions]
        )


class KeepsTheFirstOrder(BrokenTransport):
    """As arguments of a queue that exists."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.first: dict[str, Subscription] = {}

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await super().declare([self.first.setdefault(each.name, each) for each in subscriptions])


class CountsNothingAsHeld(BrokenTransport):
    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        return replace(await super().stats(subscription), held=0)


class SpreadsMessagesWithoutAKey(BrokenTransport):
    """As partitions that are chosen by the id where there is no key."""

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await super().publish(
            [
                Envelope({"partitionkey": each.key or each.id, **each.attributes}, each.data)
                for each in envelopes
            ]
        )
