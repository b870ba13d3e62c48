"""Deletes from a broker what a test has made there, under its prefix.

Redis lists its keys. RabbitMQ does not list its queues by AMQP, so they are deleted by the names
that the subscriptions, messages and delays of the test give them. A broker in a file or in memory
goes with its folder or process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from eventmesh.clock import SystemClock
from eventmesh.transports.base import Subscription, TransportOptions
from eventmesh.transports.rabbitmq.topology import Entity, Exchange, Queue, Topology, delay_step

if TYPE_CHECKING:  # loaded where a test uses Redis
    from eventmesh.transports.redis.connection import Redis

_AT_ONCE = 500


@dataclass
class Leftovers:
    """What a test has made on a broker; `delays` are the seconds after which it retried."""

    broker_url: str
    prefix: str
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    messages: set[str] = field(default_factory=set)
    delays: set[float] = field(default_factory=set)


async def delete(leftovers: Leftovers) -> None:
    """Delete all of it. Nobody may use it any more."""
    scheme = urlsplit(leftovers.broker_url).scheme
    if scheme.startswith("redis"):
        await _delete_keys(leftovers)
    elif scheme.startswith("amqp"):
        await _delete_queues(leftovers)


async def _delete_keys(leftovers: Leftovers) -> None:
    from eventmesh.transports.redis.transport import RedisTransport

    options = TransportOptions(prefix=leftovers.prefix, create_missing=False)
    transport = RedisTransport(leftovers.broker_url, SystemClock(), options)
    try:
        await transport.connect()
        for server in transport.servers:
            await _delete_keys_of(server, leftovers.prefix)
    finally:
        await transport.close()


async def _delete_keys_of(server: Redis, prefix: str) -> None:
    cursor = b"0"
    while True:
        cursor, keys = await server.ask("SCAN", cursor, "MATCH", f"*{prefix}*", "COUNT", _AT_ONCE)
        if keys:
            await server.batch([("UNLINK", key) for key in keys])
        if cursor == b"0":
            return


async def _delete_queues(leftovers: Leftovers) -> None:
    from aio_pika import connect

    async with await connect(leftovers.broker_url) as connection:
        channel = await connection.channel()
        for entity in _entities(leftovers):
            match entity:
                case Queue():
                    await channel.queue_delete(entity.name)
                case Exchange():
                    await channel.exchange_delete(entity.name)


def _entities(leftovers: Leftovers) -> Iterator[Entity]:
    topology = Topology(leftovers.prefix)
    messages = leftovers.messages.union(
        *(each.messages for each in leftovers.subscriptions.values())
    )
    if not messages:
        return
    yield from topology.for_publishing(messages)
    for subscription in leftovers.subscriptions.values():
        yield from topology.for_subscription(subscription)
    for step in sorted({delay_step(each) or 0 for each in leftovers.delays} - {0}):
        yield from topology.for_delay(step)
