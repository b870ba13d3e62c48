"""Brokers that refuse the messages of one name, as an operator's mistake makes them do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiormq
from redis.asyncio import Redis

from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.redis.keys import layouts


def refusing(
    url: str, prefix: str, message: str, slots: int = 1
) -> AbstractAsyncContextManager[None]:
    """The broker at this URL refuses this message inside the context. On RabbitMQ, something must
    have been declared under the prefix; on Redis, the prefix is spread over so many slots."""
    if url.startswith("amqp"):
        return _a_full_queue(url, Topology(prefix).exchange, message)
    parts = layouts(prefix, slots, one_slot=False)
    return _something_else(url, [part.stream(message) for part in parts])


@asynccontextmanager
async def _something_else(url: str, streams: Sequence[str]) -> AsyncIterator[None]:
    """Something other than a stream is at each stream's key."""
    async with Redis.from_url(url) as redis:
        for stream in streams:
            await redis.set(stream, "something else")
        try:
            yield
        finally:
            await redis.delete(*streams)


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
