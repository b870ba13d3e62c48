"""A request may be cancelled while a broker is silent, after any number of bytes: the next request
gets its own answers, and no confirmed message is lost. A transport may be closed at any moment: it
leaves no connection open."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from eventmesh.transports.base import Transport, TransportOptions, publish_or_raise
from eventmesh.transports.factory import make_transport, open_transport
from eventmesh.transports.outcome import DONE
from tests.integration.cancellation import (
    growing_numbers,
    request_after_a_cancelled_one,
    run_turns,
)
from tests.integration.redis_nodes import eventually
from tests.integration.redis_traffic import PAID, envelopes
from tests.support.cut_positions import cut_positions, every_position
from tests.support.proxy import Direction, proxy_before

TIMEOUT_SECONDS = 900.0
STEPS = {"redis": 5, "rabbitmq": 61}
"""Bytes between two silences in the soak: the shortest answer of Redis, and fewer than most of
RabbitMQ's answers have."""

MIN_INTERRUPTIONS = 12
"""How many silences, or turns of the event loop, must at least interrupt the requests."""

# Uses of a transport

Call = Callable[[Transport], Awaitable[None]]


async def declare(transport: Transport) -> None:
    await transport.declare([PAID])


async def publish(transport: Transport) -> None:
    await publish_or_raise(transport, envelopes(2))


async def stats(transport: Transport) -> None:
    await transport.stats(PAID)


async def dead_letters(transport: Transport) -> None:
    await transport.dead_letters(PAID, limit=10)


async def consume_one(transport: Transport) -> None:
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


async def publish_and_consume(transport: Transport) -> None:
    """Publish, and consume until all of it has been delivered."""
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


@every_position
@pytest.mark.parametrize("direction", Direction)
async def test_the_request_after_a_cancelled_one_gets_its_own_answers(
    broker_server: Server, direction: Direction, *, every_position: bool
) -> None:
    options = TransportOptions(visibility_timeout=1.0, prefix=f"test-{secrets.token_hex(5)}")
    async with asyncio.timeout(TIMEOUT_SECONDS), proxy_before(broker_server.url) as proxy:

        async def undisturbed() -> None:
            async with open_transport(proxy.url, SystemClock(), options) as transport:
                await connect_and_use(transport)

        await undisturbed()  # the first use creates the queues
        positions = await cut_positions(
            proxy,
            direction,
            undisturbed,
            step=STEPS[broker_server.kind],
            every_position=every_position,
        )
        silences = 0
        for position in positions:
            transport = make_transport(proxy.url, SystemClock(), options)
            try:
                was_done = await request_after_a_cancelled_one(
                    *(proxy, position, direction),
                    connect_and_use(transport),
                    publish_and_consume(transport),
                )
            finally:
                await transport.close()
            if was_done:
                break
            silences += 1
    assert silences > MIN_INTERRUPTIONS


@every_position
async def test_closing_a_transport_at_any_moment_leaves_no_connection(
    broker_server: Server, *, every_position: bool
) -> None:
    options = TransportOptions(prefix=f"test-{secrets.token_hex(5)}")
    async with asyncio.timeout(TIMEOUT_SECONDS), proxy_before(broker_server.url) as proxy:
        for turns in growing_numbers(every_position=every_position):
            transport = make_transport(proxy.url, SystemClock(), options)
            await transport.connect()
            users = [asyncio.ensure_future(use(transport)) for _ in range(3)]
            await run_turns(turns)
            all_was_done = all(user.done() for user in users)
            await transport.close()
            for ended in await asyncio.gather(*users, return_exceptions=True):
                assert ended is None or isinstance(ended, Unreachable), ended
            await eventually(lambda: proxy.connections == 0, f"no connection left; {turns} turns")
            if all_was_done:
                break
    assert turns > MIN_INTERRUPTIONS


@every_position
@pytest.mark.parametrize("call", [declare, publish, stats, dead_letters, consume_one])
async def test_a_call_that_is_cancelled_at_any_moment_raises_cancelled_error(
    broker_server: Server, call: Call, *, every_position: bool
) -> None:
    options = TransportOptions(prefix=f"test-{secrets.token_hex(5)}")
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        open_transport(broker_server.url, SystemClock(), options) as transport,
    ):
        await declare(transport)
        for turns in growing_numbers(every_position=every_position):
            caller = asyncio.ensure_future(call(transport))
            await run_turns(turns)
            was_done = caller.done()
            caller.cancel()
            await asyncio.wait([caller])
            assert was_done or caller.cancelled(), f"after {turns} turns: {caller}"
            if was_done:
                break
    assert turns > 1
