"""Whatever is given up while a broker is silent, after however many bytes: what is asked next gets
its own answers, and nothing that was published for sure is lost. And a transport that is closed at
any moment leaves no connection open."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from itertools import count

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from eventmesh.transports.base import Transport, TransportOptions, publish_or_raise
from eventmesh.transports.factory import make_transport, open_transport
from eventmesh.transports.outcome import DONE
from tests.integration.giving_up import ask_while_another_gives_up
from tests.integration.redis_nodes import eventually
from tests.integration.redis_traffic import PAID, envelopes
from tests.support.proxy import Direction, proxy_before

PATIENCE = 300.0
STEPS = {"redis": 5, "rabbitmq": 61}
"""Bytes: the shortest answer of Redis, and less than most of RabbitMQ's."""

ENOUGH = 12
"""Silences, or turns of the event loop, at the least, until all is done before."""

# What is done with a transport.

Call = Callable[[Transport], Awaitable[None]]


async def declare(transport: Transport) -> None:
    await transport.declare([PAID])


async def publish(transport: Transport) -> None:
    await publish_or_raise(transport, envelopes(2))


async def stats(transport: Transport) -> None:
    await transport.stats(PAID)


async def dead_letters(transport: Transport) -> None:
    await transport.dead_letters(PAID, limit=10)


async def hear(transport: Transport) -> None:
    await publish_or_raise(transport, envelopes(1))
    async with transport.consume(PAID, prefetch=10) as consumer:
        await consumer.settle([(each, DONE) for each in await consumer.receive(10)])


async def use(transport: Transport) -> None:
    await declare(transport)
    await publish(transport)
    await stats(transport)


async def connect_and_use(transport: Transport) -> None:
    await transport.connect()
    await use(transport)


async def publish_and_hear(transport: Transport) -> None:
    """Publish, and be handed out all of it."""
    await transport.connect()
    await transport.declare([PAID])
    published = envelopes(3)
    await publish_or_raise(transport, published)
    assert (await transport.stats(PAID)).ready >= len(published)
    missing = {each.id for each in published}
    async with transport.consume(PAID, prefetch=100) as consumer:
        while missing:
            deliveries = await consumer.receive(100)
            await consumer.settle([(each, DONE) for each in deliveries])
            missing -= {each.envelope.id for each in deliveries}


@pytest.mark.parametrize("direction", Direction)
async def test_who_asks_next_gets_its_own_answers(
    broker_server: Server, direction: Direction
) -> None:
    options = TransportOptions(visibility_timeout=1.0, prefix=f"test-{secrets.token_hex(5)}")
    async with asyncio.timeout(PATIENCE), proxy_before(broker_server.url) as proxy:
        for silences in count():
            transport = make_transport(proxy.url, SystemClock(), options)
            try:
                after = 1 + silences * STEPS[broker_server.kind]
                was_done = await ask_while_another_gives_up(
                    *(proxy, after, direction),
                    connect_and_use(transport),
                    publish_and_hear(transport),
                )
            finally:
                await transport.close()
            if was_done:
                break
    assert silences > ENOUGH


async def test_closing_at_any_moment_leaves_no_connection(broker_server: Server) -> None:
    options = TransportOptions(prefix=f"test-{secrets.token_hex(5)}")
    async with asyncio.timeout(PATIENCE), proxy_before(broker_server.url) as proxy:
        for turns in more_and_more():
            transport = make_transport(proxy.url, SystemClock(), options)
            await transport.connect()
            users = [asyncio.ensure_future(use(transport)) for _ in range(3)]
            await turn(turns)
            all_was_done = all(user.done() for user in users)
            await transport.close()
            for ended in await asyncio.gather(*users, return_exceptions=True):
                assert ended is None or isinstance(ended, Unreachable), ended
            await eventually(lambda: proxy.connections == 0, f"no connection; {turns} turns")
            if all_was_done:
                break
    assert turns > ENOUGH


@pytest.mark.parametrize("call", [declare, publish, stats, dead_letters, hear])
async def test_who_is_cancelled_at_any_moment_hears_of_it(
    broker_server: Server, call: Call
) -> None:
    options = TransportOptions(prefix=f"test-{secrets.token_hex(5)}")
    async with (
        asyncio.timeout(PATIENCE),
        open_transport(broker_server.url, SystemClock(), options) as transport,
    ):
        await declare(transport)
        for turns in more_and_more():
            caller = asyncio.ensure_future(call(transport))
            await turn(turns)
            was_done = caller.done()
            caller.cancel()
            await asyncio.wait([caller])
            assert was_done or caller.cancelled(), f"after {turns} turns: {caller}"
            if was_done:
                break
    assert turns > 1


def more_and_more() -> Iterator[int]:
    """Numbers of turns of the event loop, first each, then almost each, later some."""
    turns = 0
    while True:
        yield turns
        turns += 1 + turns // 100


async def turn(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
