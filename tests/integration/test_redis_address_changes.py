"""A client that moves to another server during use leaves no connection to the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from eventmesh.transports.redis.address import Address, parse_broker_url
from eventmesh.transports.redis.connection import Redis
from tests.integration.redis_nodes import eventually
from tests.support.proxy import Proxy, proxy_before

MAX_TURNS = 60
"""Turns of the event loop, in each of which a request begins."""

CUT_AT = (*range(1, 20), *range(20, MAX_TURNS, 5))
"""The turns with a cut: each while the connection is made and first used, then a sample."""


class MovingClient:
    """A client whose server moves: from the second lookup on, it has the second address."""

    def __init__(self, first: Proxy, second: Proxy) -> None:
        self.first, self.second = first, second
        self.moved = False
        self._at: Proxy | None = None
        self.redis = Redis(first.url, dict(parse_broker_url(first.url).options), self)
        self.redis.open()

    async def locate(self) -> Address:
        self.moved = self._at is not None
        self._at = self.second if self.moved else self.first
        return parse_broker_url(self._at.url).addresses[0]

    async def ask(self) -> None:
        assert await self.redis.ask("PING") == b"PONG"


async def until_moved(client: MovingClient) -> None:
    while not client.moved:
        client.first.cut()
        with suppress(Unreachable):
            await client.ask()


@pytest.fixture
async def proxies(redis_server: Server) -> AsyncIterator[tuple[Proxy, Proxy]]:
    async with proxy_before(redis_server.url) as first, proxy_before(redis_server.url) as second:
        yield first, second


async def test_moving_to_another_address_at_any_moment_leaves_no_connection(
    proxies: tuple[Proxy, Proxy],
) -> None:
    for last in CUT_AT:
        client = MovingClient(*proxies)
        requests = []
        for turn in range(MAX_TURNS):
            if turn == last:
                client.first.cut()
            requests.append(asyncio.ensure_future(client.ask()))
            await asyncio.sleep(0)
        for ended in await asyncio.gather(*requests, return_exceptions=True):
            assert ended is None or isinstance(ended, Unreachable), ended
        await until_moved(client)
        await eventually(lambda: not proxies[0].connections, f"no connection left; {last} turns")
        await client.redis.close()
        await eventually(lambda: not proxies[1].connections, "no connection left to the second")
