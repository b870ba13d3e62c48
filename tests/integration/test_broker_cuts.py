"""A connection to a broker that is cut, after however many bytes: what comes of it is Unreachable,
and whatever was published for sure is handed out once there is a connection again."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from eventmesh.transports.base import Transport, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE
from tests.integration.redis_traffic import PAID, envelopes
from tests.support.proxy import Direction, Proxy, proxy_before

PATIENCE = 300.0
STEPS = {"redis": 23, "rabbitmq": 131}
"""Bytes: less than most that is said at a time."""

ENOUGH = 12
"""Cuts, at the least, until a worker's life is lived to its end."""


@dataclass
class Account:
    """What was surely published, and what was handed out."""

    published: set[str] = field(default_factory=set)
    handed_out: set[str] = field(default_factory=set)


@pytest.mark.parametrize("direction", Direction)
async def test_a_connection_cut_after_any_number_of_bytes_is_unreachable_and_loses_nothing(
    broker_server: Server, direction: Direction
) -> None:
    account, prefix = Account(), f"test-{secrets.token_hex(5)}"

    def live_there(url: str) -> Awaitable[None]:
        return live(url, prefix, account)

    async with asyncio.timeout(PATIENCE):
        async with proxy_before(broker_server.url) as proxy:
            assert await all_cuts(proxy, direction, STEPS[broker_server.kind], live_there) > ENOUGH
        async with connected(broker_server.url, prefix) as transport:
            await hear(transport, account.published, account)


async def all_cuts(
    proxy: Proxy, direction: Direction, step: int, live_at: Callable[[str], Awaitable[None]]
) -> int:
    """Live with a cut after ever more bytes, until none comes in between; returns how many did."""
    for cuts in count():
        cutting = asyncio.ensure_future(proxy.cut_after(1 + cuts * step, direction))
        await asyncio.sleep(0)  # so that it is set
        lived = False
        with suppress(Unreachable):
            await live_at(proxy.url)
            lived = True
        if lived and not cutting.done():
            cutting.cancel()
            return cuts
        assert cutting.done(), "unreachable, but not for the cut"
    raise AssertionError


async def live(url: str, prefix: str, account: Account) -> None:
    """As a worker does: declare, publish, hear, settle."""
    async with connected(url, prefix) as transport:
        await transport.declare([PAID])
        messages = envelopes(2)
        ids = {each.id for each in messages}
        await publish_or_raise(transport, messages)
        account.published |= ids
        await hear(transport, ids, account)
        await transport.stats(PAID)


async def hear(transport: Transport, ids: set[str], account: Account) -> None:
    """Until all of these have been handed out."""
    async with transport.consume(PAID, prefetch=100) as consumer:
        while not ids <= account.handed_out:
            deliveries = await consumer.receive(100)
            account.handed_out |= {each.envelope.id for each in deliveries}
            await consumer.settle([(each, DONE) for each in deliveries])


@asynccontextmanager
async def connected(url: str, prefix: str) -> AsyncIterator[Transport]:
    options = TransportOptions(visibility_timeout=1.0, prefix=prefix)
    async with open_transport(url, SystemClock(), options) as transport:
        yield transport
