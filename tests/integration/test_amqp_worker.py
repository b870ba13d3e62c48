"""Queues and exchanges are deleted while a worker process runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
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


async def test_a_worker_declares_deleted_queues_and_exchanges_again_and_loses_nothing(
    on: Callable[[str], Any],
    put: Callable[..., Any],
    attributes: Callable[..., dict[str, str]],
    operator: aiormq.abc.AbstractConnection,
) -> None:
    project = on("amqp")
    worker = project.worker()
    topology = Topology(project.prefix)

    async def deposit(owner: str) -> None:
        await put(project, attributes(), b'{"owner": "%b", "cents": 500}' % owner.encode())
        worker.until_prints(f"{owner} has 5.00")

    await deposit("first")
    channel = await operator.channel()
    for queue in (topology.queue(DEPOSITS), topology.queue(NOTIFICATIONS)):
        await channel.queue_delete(queue)
    await deposit("second")
    assert worker.events().count("subscription waiting for broker") == 2

    await channel.exchange_delete(topology.exchange)
    for queue in (topology.queue(DEPOSITS), topology.queue(NOTIFICATIONS)):
        await channel.queue_delete(queue)
    await until_declared_again(operator, topology.exchange)
    await deposit("third")
    assert worker.events().count("subscription waiting for broker") == 4

    # If no queue is deleted, no consumer is cancelled.
    await channel.exchange_delete(topology.exchange)
    await until_declared_again(operator, topology.exchange)
    await deposit("fourth")
    assert worker.events().count("subscription waiting for broker") == 4
    worker.drain()
