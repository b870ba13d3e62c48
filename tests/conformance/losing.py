"""Brokers that lose the way of messages to subscriptions, by an operator's mistake."""

from __future__ import annotations

from collections.abc import Sequence

import aiormq
from redis.asyncio import Redis

from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.redis.keys import layouts


async def losing_topology(
    url: str, prefix: str, subscriptions: Sequence[Subscription], slots: int = 1
) -> None:
    """Delete, on the broker at this URL, what brings messages to these subscriptions. On Redis, the
    prefix is spread over so many slots."""
    if url.startswith("amqp"):
        connection = await aiormq.connect(url)
        try:
            channel = await connection.channel()
            await channel.exchange_delete(Topology(prefix).exchange)  # and all its bindings
        finally:
            await connection.close()
        return
    parts = layouts(prefix, slots, one_slot=False)
    async with Redis.from_url(url) as redis:
        for keys in (part.of(subscription) for part in parts for subscription in subscriptions):
            for stream in keys.streams:
                await redis.xgroup_destroy(stream, keys.group)
