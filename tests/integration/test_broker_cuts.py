"""A connection to a broker may be cut after any number of bytes: the error is Unreachable, and
every confirmed message is delivered once there is a connection again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from eventmesh.transports.base import Transport, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE
from tests.integration.redis_traffic import PAID, envelopes
from tests.support.cut_positions import cut_positions, every_position
from tests.support.proxy import Direction, Proxy, proxy_before

TIMEOUT_SECONDS = 900.0
STEPS = {"redis": 23, "rabbitmq": 131}
"""Bytes between two cuts in the soak: fewer than most messages of the protocols have."""

MIN_CUTS = 12
"""How many cuts must at least interrupt the session, before one comes too late to matter."""


@dataclass
class Account:
    """The ids of confirmed and of delivered messages."""

    confirmed: set[str] = field(default_factory=set)
    delivered: set[str] = field(default_factory=set)


@every_position
@pytest.mark.parametrize("direction", Direction)
async def test_a_connection_cut_after_any_number_of_bytes_raises_unreachable_and_loses_nothing(
    broker_server: Server, direction: Direction, *, every_position: bool
) -> None:
    account, prefix = Account(), f"test-{secrets.token_hex(5)}"

    def run_through_proxy(url: str) -> Awaitable[None]:
        return run_session(url, prefix, account)

    async with asyncio.timeout(TIMEOUT_SECONDS):
        async with proxy_before(broker_server.url) as proxy:
            await run_through_proxy(proxy.url)  # the first session creates its queues
            positions = await cut_positions(
                proxy,
                direction,
                lambda: run_through_proxy(proxy.url),
                step=STEPS[broker_server.kind],
                every_position=every_position,
            )
            cuts = await cuts_until_success(proxy, direction, positions, run_through_proxy)
            assert cuts > MIN_CUTS
        async with connected(broker_server.url, prefix) as transport:
            await consume_until(transport, account.confirmed, account)


async def cuts_until_success(
    proxy: Proxy,
    direction: Direction,
    positions: Iterator[int],
    session_at: Callable[[str], Awaitable[None]],
) -> int:
    """Run a session with a cut after more and more bytes, until none interrupts it; returns how
    many did."""
    for cuts, position in enumerate(positions):
        cutting = asyncio.ensure_future(proxy.cut_after(position, direction))
        await asyncio.sleep(0)  # the cut is set now
        succeeded = False
        with suppress(Unreachable):
            await session_at(proxy.url)
            succeeded = True
        if succeeded and not cutting.done():
            cutting.cancel()
            return cuts
        assert cutting.done(), "unreachable, but not because of the cut"
    raise AssertionError


async def run_session(url: str, prefix: str, account: Account) -> None:
    """What a worker does: declare, publish, consume, settle."""
    async with connected(url, prefix) as transport:
        await transport.declare([PAID])
        messages = envelopes(2)
        ids = {each.id for each in messages}
        await publish_or_raise(transport, messages)
        account.confirmed |= ids
        await consume_until(transport, ids, account)
        await transport.stats(PAID)


async def consume_until(transport: Transport, ids: set[str], account: Account) -> None:
    """Consume until all of these have been delivered."""
    async with transport.consume(PAID, prefetch=100) as consumer:
        while not ids <= account.delivered:
            deliveries = await consumer.receive(100)
            account.delivered |= {each.envelope.id for each in deliveries}
            await consumer.settle([(each, DONE) for each in deliveries])


@asynccontextmanager
async def connected(url: str, prefix: str) -> AsyncIterator[Transport]:
    options = TransportOptions(visibility_timeout=1.0, prefix=prefix)
    async with open_transport(url, SystemClock(), options) as transport:
        yield transport
