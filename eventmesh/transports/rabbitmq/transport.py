"""RabbitMQ 3.10 and later as a transport, by AMQP 0-9-1, with no plugin.

Publishing and consuming have a connection each: RabbitMQ stops reading from connections that
publish while it is short of memory or disk, and acknowledgements must still get through then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from types import MappingProxyType

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.tracing.place import Peer
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    Consumer,
    DeadLetter,
    Order,
    PublishResult,
    Subscription,
    SubscriptionStats,
    TransportOptions,
    Unrouted,
)
from eventmesh.transports.census import Census, Hidden
from eventmesh.transports.facts import BrokerFacts
from eventmesh.transports.finding import Found
from eventmesh.transports.rabbitmq.census import Counting
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.consumer import AmqpConsumer
from eventmesh.transports.rabbitmq.dead_letters import DeadLetterQueue
from eventmesh.transports.rabbitmq.facts import Facts
from eventmesh.transports.rabbitmq.messages import new_message
from eventmesh.transports.rabbitmq.ordered.consumer import OrderedConsumer
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.relocation import Relocation
from eventmesh.transports.rabbitmq.rerouting import Rerouter
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.rabbitmq.unrouted import UnroutedQueues
from eventmesh.transports.rabbitmq.upkeep import TopologyUpkeep
from eventmesh.wire.envelope import Envelope


class AmqpTransport:
    """One process's connections to a RabbitMQ broker."""

    atomic_batches = False
    exact_deliveries = False  # RabbitMQ also counts deliveries that were given back unhandled
    keeps_order = True
    dead_letters_by_itself = True  # by a policy with a time to live, a length, a delivery limit

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._clock = clock
        self._topology = Topology(options.prefix)
        self._publishing = BrokerConnection(url, f"{options.prefix} publishing", options)
        self._consuming = BrokerConnection(url, f"{options.prefix} consuming", options)
        self._publisher = Publisher(self._publishing)
        self._rerouter = Rerouter(self._consuming, self._publisher, self._topology, clock)
        self._facts = Facts(self._consuming, self._topology, clock, url, options.management_url)
        self._relocation = Relocation(self._consuming, self._publisher, self._topology, clock)
        self._ordered: set[OrderedConsumer] = set()
        self._upkeep = TopologyUpkeep(
            self._consuming, self._topology, clock, self._rerouter, self._relocation
        )

    def peer(self, *, publishing: bool) -> Peer | None:
        return (self._publishing if publishing else self._consuming).peer

    async def connect(self) -> None:
        await self._publishing.open()
        self._consuming.allow()

    async def close(self) -> None:
        await self._upkeep.stop()
        for consumer in list(self._ordered):
            await consumer.leave()
        await self._consuming.close()
        await self._publishing.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await self._declare_over(self._publishing, subscriptions)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        if not envelopes:
            return ALL_CONFIRMED
        batch = Batch([new_message(self._topology.exchange, each) for each in envelopes])
        needs = self._topology.for_publishing(envelope.name for envelope in envelopes)
        try:
            rejected = await self._publisher.publish(batch, needs)
        except Unreachable as error:
            places = set(range(len(envelopes))) - batch.confirmed
            return PublishResult.interrupted((envelopes[place] for place in places), error)
        return PublishResult({envelopes[at].id: str(error) for at, error in rejected.items()})

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        # Over the connection that consumes: the other may be blocked, and this must go on.
        await self._declare_over(self._consuming, [subscription])
        if subscription.order is not None:
            async with self._consume_in_order(
                subscription, subscription.order, prefetch
            ) as ordered:
                yield ordered
            return
        consumer = AmqpConsumer(
            self._consuming, self._publishing, subscription, self._topology, self._clock
        )
        try:
            with self._upkeep.consumed(subscription):
                await consumer.start(prefetch)
                yield consumer
        finally:
            await consumer.leave()

    @asynccontextmanager
    async def _consume_in_order(
        self, subscription: Subscription, order: Order, prefetch: int
    ) -> AsyncIterator[Consumer]:
        async with self._consuming.for_many_channels() as connection:
            consumer = OrderedConsumer(
                connection, self._publishing, subscription, order, self._topology, self._clock
            )
            self._ordered.add(consumer)
            try:
                with self._upkeep.consumed(subscription):
                    await consumer.start(prefetch)
                    yield consumer
            finally:
                self._ordered.discard(consumer)
                await consumer.leave()

    @contextmanager
    def consumed_by_others(self, subscriptions: Sequence[Subscription]) -> Iterator[None]:
        """While this lasts, another client in this process consumes these, which are declared."""
        with ExitStack() as stack:
            for each in subscriptions:
                stack.enter_context(self._upkeep.consumed(each))
            yield

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        return await self._facts.stats(subscription)

    async def examine(self, *, thorough: bool = False) -> BrokerFacts:
        return await self._facts.examine(thorough=thorough)

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        counting = Counting(self._consuming, self._topology, self._clock)
        found = await counting.count(subscriptions, messages, untouched)
        if any(kind.state == "unrouted" for kind in found.lots):
            # A subscription that was declared while they were held has not found them.
            declared = await self._rerouter.declared_messages(subscriptions)
            await self._rerouter.reroute(declared)
        return found

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        """RabbitMQ shows a message only by delivering it, so nothing is looked into."""
        why = "RabbitMQ shows a message only by delivering it"
        hidden = []
        for subscription in subscriptions:
            held = await self._facts.stats(subscription)
            if held.ready:
                hidden.append(Hidden(subscription.name, "ready", held.ready, why))
            if held.in_flight != 0 and held.consumers != 0:
                hidden.append(Hidden(subscription.name, "in_flight", held.in_flight, why))
        for each in await self.unrouted(messages):
            hidden.append(Hidden("", "unrouted", each.number, why))
        delayed = (await self.examine()).delayed_together
        if delayed != 0:
            hidden.append(Hidden("", "delayed", delayed, why))
        return Found((), tuple(hidden))

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        queues = UnroutedQueues(self._consuming, self._topology, self._clock)
        if not thorough:
            return await queues.count(messages)
        found = await queues.inspect(messages)
        ours = {each.message for each in found if not each.foreign}
        await self._rerouter.reroute_late(subscriptions, ours)
        return found

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        # Messages that a subscription wants can still be unrouted, if somebody deleted
        # bindings or the exchange. They must be delivered, not deleted.
        taken = await self._rerouter.declared_messages(subscriptions)
        if message:
            taken &= {message}
            await self._rerouter.reroute(taken)
        if not (message and keep):
            await self._rerouter.reroute_foreign(taken)
        if not all(map(self._rerouter.may_try, taken)):
            return 0  # RabbitMQ rejected some of them, which stay
        queues = UnroutedQueues(self._consuming, self._topology, self._clock)
        purged = await queues.purge(message, keep, older_than)
        await self._rerouter.reroute_late(subscriptions, {message})
        return purged

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        return await self._dead_letter_queue(subscription).list_oldest(limit, most_bytes, only)

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        return await self._dead_letter_queue(subscription).replay(ids, edited)

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        return await self._dead_letter_queue(subscription).discard(ids)

    async def set_partitions(self, subscription: Subscription, partitions: int) -> int | None:
        """Divide what waits for a subscription with an order among so many partitions; returns how
        many it had, None if it is not declared with an order. UsageError while workers consume."""
        return await self._relocation.set_partitions(subscription, partitions)

    def _dead_letter_queue(self, subscription: Subscription) -> DeadLetterQueue:
        return DeadLetterQueue(
            self._consuming, self._publisher, self._topology, subscription, self._clock
        )

    async def _declare_over(
        self, connection: BrokerConnection, subscriptions: Sequence[Subscription]
    ) -> None:
        """Declare what these need, whether it was declared before or not: somebody may have deleted
        it. Then reroute unrouted messages to those that are new to this process. What is unrouted
        for the others was lost by a deletion; other processes may have lost theirs too, so the
        upkeep reroutes it once these had time to restore them. Only those that are new change the
        order of what waits; the others are an error if somebody else has changed it."""
        new = [each for each in subscriptions if not self._upkeep.covers(each)]
        await self._relocation.check_unchanged(
            [each for each in self._upkeep.idle() if each in subscriptions]
        )
        await self._relocation.follow_declarations(new)
        entities = self._topology.for_subscriptions(subscriptions)
        connection.forget_declared(entities)
        ordered = [each for each in subscriptions if each.order is not None]
        try:
            await connection.ensure_declared(entities or self._topology.for_publishing())
            await self._relocation.check_numbers(ordered)
        except UsageError:
            await self._relocation.cut_off_changed(ordered)
            raise
        names = {name for subscription in new for name in subscription.messages}
        await self._rerouter.reroute(names)
        await self._rerouter.reroute_foreign(names)
        self._upkeep.cover(new)
