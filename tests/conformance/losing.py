"""Brokers that lose the way of messages to subscriptions, by an operator's mistake."""

from __future__ import annotations

from collections.abc import Sequence

import aiormq
from redis.asyncio import Redis

from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.redis.keys import Layout


async def losing_topology(url: str, prefix: str, subscriptions: Sequence[Subscription]) -> None:
    """Delete, on the broker at this URL, what brings messages to these subscriptions."""
    if url.startswith("amqp"):
        connection = await aiormq.connect(url)
        try:
            channel = await connection.channel()
            await channel.exchange_delete(Topology(prefix).exchange)  # and all its bindings
        finally:
            await connection.close()
        return
    layout = Layout(prefix, one_slot=False)
    async with Redis.from_url(url) as redis:
        for subscription in subscriptions:
            keys = layout.of(subscription)
            for stream in keys.streams:
                await redis.xgroup_destroy(stream, keys.group)
