"""Counting what waits in many queues of RabbitMQ, most of which do not exist."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest
from aiormq.abc import ChannelFrame
from pamqp.heartbeat import Heartbeat

from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.rabbitmq.connection import MAX_CHANNELS, BrokerConnection
from eventmesh.transports.rabbitmq.inspection import QueueCounts, count_messages
from tests.support.proxy import Direction, proxy_before

MANY = 5 * MAX_CHANNELS + 1

TIME_TO_ANSWER = 0.005
"""Seconds in which RabbitMQ answers, as a rule."""

MIN_INTERRUPTIONS = 5
"""How many turns of the event loop must at least interrupt the count."""


@pytest.fixture
async def connection(rabbitmq_server: Server) -> AsyncIterator[BrokerConnection]:
    made = BrokerConnection(rabbitmq_server.url, "counting", TransportOptions())
    await made.open()
    yield made
    await made.close()


@pytest.mark.parametrize("present", [[], [0], [3, 20, 21, 22, MANY - 1], range(MANY)])
async def test_of_many_queues_those_that_exist_are_counted(
    connection: BrokerConnection, present: list[int]
) -> None:
    names = [f"counts-{uuid.uuid4().hex}" for _ in range(MANY)]
    expected = {}
    async with connection.channel() as channel:
        for place in present:
            # Not exclusive: they are counted over another connection.
            await channel.queue_declare(names[place], arguments={"x-expires": 600_000})
            for _ in range(place % 3):
                await channel.basic_publish(b"", routing_key=names[place])
            expected[names[place]] = QueueCounts(ready=place % 3, consumers=0)
    for _ in range(2):
        assert await count_messages(connection, names) == expected


async def test_many_can_be_counted_by_several_at_a_time(connection: BrokerConnection) -> None:
    names = [f"counts-{uuid.uuid4().hex}" for _ in range(MANY)]
    counts = await asyncio.gather(*(count_messages(connection, names) for _ in range(4)))
    assert counts == [{}] * 4


@pytest.mark.parametrize("size", [500, 5_000, 50_000])
async def test_a_connection_lost_while_many_are_counted_is_unreachable(
    rabbitmq_server: Server, size: int
) -> None:
    names = [f"counts-{uuid.uuid4().hex}" for _ in range(MANY)]
    async with proxy_before(rabbitmq_server.url) as proxy:
        connection = BrokerConnection(proxy.url, "counting", TransportOptions())
        await connection.open()
        try:
            cutting = asyncio.ensure_future(proxy.cut_after(size, Direction.TO_CLIENT))
            with pytest.raises(Unreachable):
                await count_messages(connection, names * 20)
            await cutting
            assert await count_messages(connection, names) == {}
        finally:
            await connection.close()


async def test_asking_for_queues_that_do_not_exist_keeps_a_connection_that_sends_much(
    connection: BrokerConnection,
) -> None:
    heartbeat = ChannelFrame.marshall(channel_number=0, frames=[Heartbeat()])
    async with connection.channel() as channel:

        async def send_much() -> None:
            while True:
                for _ in range(MANY):
                    await channel.write_queue.put(heartbeat)
                await asyncio.sleep(0)

        sending = asyncio.ensure_future(send_much())
        try:
            for _ in range(10):
                assert await count_messages(connection, [f"counts-{uuid.uuid4().hex}"]) == {}
        finally:
            sending.cancel()
        assert not channel.is_closed


async def test_counting_a_queue_that_does_not_exist_can_be_cancelled_at_any_moment(
    connection: BrokerConnection,
) -> None:
    """It counts as cancelled, and the connection's other channels stay open."""
    missing, turns, was_done = [f"counts-{uuid.uuid4().hex}"], 0, False
    async with connection.channel() as bystander:
        while not was_done:
            turns += 1
            counting = asyncio.ensure_future(count_messages(connection, missing))
            for _ in range(turns):
                time.sleep(TIME_TO_ANSWER)  # noqa: ASYNC251  # each answer is read a turn later
                await asyncio.sleep(0)
            was_done = counting.done()
            counting.cancel()
            await asyncio.wait([counting])
            assert was_done or counting.cancelled(), f"after {turns} turns: {counting}"
            assert await count_messages(connection, missing) == {}
        assert not bystander.is_closed
    assert turns > MIN_INTERRUPTIONS
