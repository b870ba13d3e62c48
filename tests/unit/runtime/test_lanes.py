"""Lanes keep the order within a key, run keys concurrently, and lose the broker together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.runtime.consuming.lanes import lane_of, split
from eventmesh.testing.clock import settle_loop
from eventmesh.transports.base import Consumer, Delivery, Subscription, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE, Outcome
from eventmesh.wire.envelope import Envelope

SUBSCRIPTION = Subscription("shop.do", ("shop.do",))


def envelope(number: int, key: str | None) -> Envelope:
    attributes = {"id": f"id-{number}", "source": "/test", "type": "shop.do"}
    return Envelope(attributes if key is None else attributes | {"partitionkey": key}, b"")


@asynccontextmanager
async def consuming(*envelopes: Envelope) -> AsyncIterator[Consumer]:
    transport = MemoryTransport(SystemClock())
    await transport.declare([SUBSCRIPTION])
    await publish_or_raise(transport, envelopes)
    async with transport.consume(SUBSCRIPTION, prefetch=100) as consumer:
        yield consumer


class LosingConsumer:
    """A consumer that loses its broker, at once or when it settles."""

    def __init__(self, consumer: Consumer, *, at_once: bool) -> None:
        self._consumer = consumer
        self._at_once = at_once

    async def receive(self, limit: int) -> Sequence[Delivery]:
        if self._at_once:
            raise Unreachable("the broker is gone")
        return await self._consumer.receive(limit)

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        raise Unreachable("the broker is gone")


async def ids(lane: Consumer) -> list[str]:
    await settle_loop()
    async with asyncio.timeout(60):
        return [delivery.envelope.id for delivery in await lane.receive(100)]


@given(st.text(min_size=1), st.integers(1, 64))
def test_a_key_always_has_the_same_lane(key: str, count: int) -> None:
    lane = lane_of(envelope(1, key), count)
    assert lane == lane_of(envelope(2, key), count)
    assert lane in range(count)


def test_messages_without_a_key_are_spread_over_the_lanes() -> None:
    assert {lane_of(envelope(number, None), 4) for number in range(100)} == {0, 1, 2, 3}


async def test_each_lane_receives_the_messages_of_its_keys_in_order() -> None:
    sent = [envelope(number, f"key-{number % 7}") for number in range(70)]
    async with consuming(*sent) as consumer, split(consumer, 3, 100) as lanes:
        for number, lane in enumerate(lanes):
            mine = [each.id for each in sent if lane_of(each, 3) == number]
            assert await ids(lane) == mine
            assert mine


async def test_a_slow_lane_does_not_block_the_others() -> None:
    sent = [envelope(number, f"key-{number}") for number in range(40)]
    async with consuming(*sent) as consumer, split(consumer, 2, 100) as [_slow, quick]:
        expected = [each.id for each in sent if lane_of(each, 2) == 1]
        assert await ids(quick) == expected


async def test_one_lane_is_the_consumer_itself() -> None:
    async with consuming() as consumer, split(consumer, 1, 100) as lanes:
        assert lanes == [consumer]


async def test_a_broker_lost_while_receiving_is_lost_to_every_lane() -> None:
    async with (
        consuming() as consumer,
        split(LosingConsumer(consumer, at_once=True), 3, 100) as lanes,
    ):
        for lane in lanes:
            with pytest.raises(Unreachable, match="the broker is gone"):
                await ids(lane)


async def test_a_broker_lost_while_one_lane_settles_is_lost_to_every_lane() -> None:
    sent = [envelope(number, f"key-{number}") for number in range(40)]
    async with (
        consuming(*sent) as consumer,
        split(LosingConsumer(consumer, at_once=False), 2, 100) as [one, two],
    ):
        await settle_loop()
        [first, *_] = await one.receive(1)
        with pytest.raises(Unreachable):
            await one.settle([(first, DONE)])
        with pytest.raises(Unreachable):
            await two.receive(1)


async def test_messages_that_no_lane_handled_are_returned_on_leaving() -> None:
    transport = MemoryTransport(SystemClock())
    await transport.declare([SUBSCRIPTION])
    await publish_or_raise(transport, [envelope(number, f"key-{number}") for number in range(10)])
    async with (
        transport.consume(SUBSCRIPTION, prefetch=100) as consumer,
        split(consumer, 4, 100) as lanes,
    ):
        await settle_loop()
        [handled] = await lanes[0].receive(1)
        await lanes[0].settle([(handled, DONE)])
    assert (await transport.stats(SUBSCRIPTION)).ready == 9
