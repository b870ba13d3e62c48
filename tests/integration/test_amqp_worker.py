"""Queues and exchanges are deleted while a worker process runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import aiormq
import pytest
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.topology import Topology

DEPOSITS = Subscription("bank.deposit", ("bank.deposit",))
NOTIFICATIONS = Subscription("bank.tell", ("bank.deposited",))


TIMEOUT_SECONDS = 120.0


@pytest.fixture
async def operator(
    durable_url: Callable[[str], str],
) -> AsyncIterator[aiormq.abc.AbstractConnection]:
    """A connection with the permission to delete."""
    connection = await aiormq.connect(durable_url("amqp"))
    try:
        yield connection
    finally:
        await connection.close()


async def until_declared_again(operator: aiormq.abc.AbstractConnection, exchange: str) -> None:
    """Return once the exchange exists."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            # RabbitMQ closes the channel if the exchange does not exist.
            channel = await operator.channel()
            try:
                await channel.exchange_declare(exchange, passive=True)
                return
            except ChannelNotFoundEntity:
                await asyncio.sleep(0.05)


async def until_consumed(operator: aiormq.abc.AbstractConnection, queues: Iterable[str]) -> None:
    """Return once each of the queues exists and has a consumer."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        for queue in queues:
            while not await consumers_of(operator, queue):  # noqa: ASYNC110  # on the server
                await asyncio.sleep(0.05)


async def consumers_of(operator: aiormq.abc.AbstractConnection, queue: str) -> int:
    channel = await operator.channel()
    try:
        return (await channel.queue_declare(queue, passive=True)).consumer_count or 0
    except ChannelNotFoundEntity:  # RabbitMQ has closed the channel
        return 0


async def test_a_worker_declares_deleted_queues_and_exchanges_again_and_loses_nothing(
    on: Callable[[str], Any],
    put: Callable[..., Any],
    attributes: Callable[..., dict[str, str]],
    operator: aiormq.abc.AbstractConnection,
) -> None:
    project = on("amqp")
    worker = project.worker()
    topology = Topology(project.prefix)
    queues = topology.queue(DEPOSITS), topology.queue(NOTIFICATIONS)

    async def deposit(owner: str) -> None:
        await put(project, attributes(), b'{"owner": "%b", "cents": 500}' % owner.encode())
        worker.until_prints(f"{owner} has 5.00")
        await until_consumed(operator, queues)

    def interrupted() -> Counter[str]:
        """How often each subscription has lost its consumer: at least once for each deletion of its
        queue, and again if the queue is not yet back when it opens the next consumer."""
        return Counter(
            line["subscription"]
            for line in worker.lines()
            if line["event"] == "subscription waiting for broker"
        )

    await deposit("first")
    channel = await operator.channel()
    for queue in queues:
        await channel.queue_delete(queue)
    await deposit("second")
    after_queues = interrupted()
    assert after_queues.keys() == {DEPOSITS.name, NOTIFICATIONS.name}

    await channel.exchange_delete(topology.exchange)
    for queue in queues:
        await channel.queue_delete(queue)
    await until_declared_again(operator, topology.exchange)
    await deposit("third")
    after_all = interrupted()
    assert all(after_all[name] > times for name, times in after_queues.items())

    # If no queue is deleted, no consumer is cancelled.
    await channel.exchange_delete(topology.exchange)
    await until_declared_again(operator, topology.exchange)
    await deposit("fourth")
    assert interrupted() == after_all
    worker.drain()
