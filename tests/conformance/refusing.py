"""Brokers that refuse the messages of one name, as an operator's mistake makes them do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiormq
from redis.asyncio import Redis

from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.redis.keys import Layout


def refusing(url: str, prefix: str, message: str) -> AbstractAsyncContextManager[None]:
    """The broker at this URL refuses this message inside the context. On RabbitMQ, something must
    have been declared under the prefix."""
    if url.startswith("amqp"):
        return _a_full_queue(url, Topology(prefix).exchange, message)
    return _something_else(url, Layout(prefix, one_slot=False).stream(message))


@asynccontextmanager
async def _something_else(url: str, stream: str) -> AsyncIterator[None]:
    """There is a key of the stream's name that is no stream."""
    async with Redis.from_url(url) as redis:
        await redis.set(stream, "something else")
        try:
            yield
        finally:
            await redis.delete(stream)


@asynccontextmanager
async def _a_full_queue(url: str, exchange: str, message: str) -> AsyncIterator[None]:
    """Somebody has bound a queue that takes nothing."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        name = f"{exchange}.full"
        full: Any = {"x-max-length": 0, "x-overflow": "reject-publish"}
        await channel.queue_declare(name, durable=True, arguments=full)
        try:
            await channel.queue_bind(name, exchange, routing_key=message)
            yield
        finally:
            await channel.queue_delete(name)
    finally:
        await connection.close()
