"""Every transport keeps every guarantee; and the guarantees notice a transport that does not."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace

import pytest

from eventmesh.clock import SystemClock
from eventmesh.testing import conformance
from eventmesh.testing.conformance import GUARANTEES, Guarantee, GuaranteeBroken, Rig
from eventmesh.transports.base import Consumer, Delivery, Subscription, Transport, TransportOptions
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE, Dead, Done, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope

BROKERS = ("memory", "sqlite", "redis", "amqp")

Settlements = Sequence[tuple[Delivery, Outcome]]


@pytest.mark.parametrize(
    ("broker", "guarantee"),
    [
        pytest.param(broker, guarantee, id=f"{broker}-{guarantee.__name__}")
        for broker, guarantee in itertools.product(BROKERS, GUARANTEES)
    ],
)
async def test_a_transport_keeps_a_guarantee(
    broker: str, guarantee: Guarantee, durable_url: Callable[[str], str]
) -> None:
    if broker == "memory":
        await guarantee(rig_in_memory(MemoryTransport(SystemClock())))
    else:
        await guarantee(rig_at(durable_url(broker)))


def rig_in_memory(transport: Transport) -> Rig:
    """A rig in which everybody is given this same transport."""

    @asynccontextmanager
    async def open_same() -> AsyncIterator[Transport]:
        yield transport

    return Rig(open=open_same)


def rig_at(url: str) -> Rig:
    """A rig on the broker of this URL, where all it makes has a name of its own."""
    options = TransportOptions(visibility_timeout=1.0, prefix=f"test-{secrets.token_hex(5)}")

    def open_anew() -> AbstractAsyncContextManager[Transport]:
        return open_transport(url, SystemClock(), options)

    return Rig(
        open=open_anew,
        url=url,
        prefix=options.prefix,
        visibility_timeout=options.visibility_timeout,
    )


# --- transports that each break one guarantee, as real ones have ---


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

    def __init__(self) -> None:
        super().__init__(SystemClock())

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[BrokenConsumer]:
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            yield self.consumer(consumer)


class LosesEverySecond(BrokenTransport):
    published = 0

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            self.published += 1
            if self.published % 2:
                await super().publish([envelope])


class DeliversToTwo(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await super().publish([each for each in envelopes for _ in range(2)])


class PublishesBackwards(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await super().publish(envelopes[::-1])


class KnowsOnlyAscii(BrokenTransport):
    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await super().publish(
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
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        self.names.update(name for each in subscriptions for name in each.messages)
        await super().declare(subscriptions)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await super().publish([each for each in envelopes if each.name in self.names])


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
    def __init__(self) -> None:
        super().__init__()
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
        await self.transport.publish(
            [each.envelope for each, outcome in settlements if isinstance(outcome, RetryAfter)]
        )


BROKEN: tuple[tuple[Guarantee, type[BrokenTransport]], ...] = (
    (conformance.round_trip, KnowsOnlyAscii),
    (conformance.fan_out, LosesEverySecond),
    (conformance.order_for_one_consumer, PublishesBackwards),
    (conformance.competing_consumers, DeliversToTwo),
    (conformance.backlog_before_the_first_consumer, BeginsAtTheEnd),
    (conformance.backlog_before_the_first_subscription, DropsTheUnrouted),
    (conformance.settled_is_gone, ForgetsWhatIsDone),
    (conformance.prefetch_is_a_bound, HasNoPrefetch),
    (conformance.settling_out_of_order, SettlesAllBefore),
    (conformance.unsettled_goes_back_on_leaving, NeverGivesBack),
    (conformance.receive_can_be_cancelled, AcknowledgesOnReceipt),
    (conformance.delayed_retry, RetriesAtOnce),
    (conformance.delays_do_not_block_each_other, HasOneQueueForAllDelays),
    (conformance.dead_letters_are_kept, DropsTheDead),
    (conformance.a_killed_consumer_gives_up_its_deliveries, NeverGivesBack),
    (conformance.a_slow_consumer_keeps_its_deliveries, StealsFromTheSlow),
    (conformance.settling_twice_is_harmless, RetriesTheSettled),
    (conformance.prefetch_counts_all_messages_of_a_subscription, CountsEachMessageAlone),
)


def test_each_guarantee_has_a_transport_that_breaks_it() -> None:
    assert [guarantee for guarantee, _ in BROKEN] == list(GUARANTEES)


@pytest.mark.parametrize(
    ("guarantee", "transport"),
    [
        pytest.param(guarantee, transport, id=f"{guarantee.__name__}-{transport.__name__}")
        for guarantee, transport in BROKEN
    ],
)
async def test_a_guarantee_notices_a_transport_that_breaks_it(
    guarantee: Guarantee,
    transport: type[BrokenTransport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conformance, "PATIENCE", 1.0)
    with pytest.raises(GuaranteeBroken):
        await guarantee(rig_in_memory(transport()))


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda guarantee: guarantee.__name__)
async def test_it_is_not_the_way_of_breaking_that_is_noticed(guarantee: Guarantee) -> None:
    """The broken transports' scaffolding, which by itself breaks nothing, keeps every guarantee."""
    await guarantee(rig_in_memory(BrokenTransport()))
