"""A server that is left for another while it is used: no connection to it stays."""

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

TURNS = 60
"""Of the event loop, in each of which somebody asks for something."""


class Two:
    """A server with two addresses, the first of which is soon the wrong one."""

    def __init__(self, first: Proxy, second: Proxy) -> None:
        self.first, self.second = first, second
        self.left = False
        self._at: Proxy | None = None
        self.redis = Redis(first.url, dict(parse_broker_url(first.url).options), self)
        self.redis.open()

    async def locate(self) -> Address:
        self.left = self._at is not None
        self._at = self.second if self.left else self.first
        return parse_broker_url(self._at.url).addresses[0]

    async def ask(self) -> None:
        assert await self.redis.ask("PING") == b"PONG"


async def until_it_is_left(two: Two) -> None:
    while not two.left:
        two.first.cut()
        with suppress(Unreachable):
            await two.ask()


@pytest.fixture
async def proxies(redis_server: Server) -> AsyncIterator[tuple[Proxy, Proxy]]:
    async with proxy_before(redis_server.url) as first, proxy_before(redis_server.url) as second:
        yield first, second


async def test_a_server_that_is_left_at_any_moment_keeps_no_connection(
    proxies: tuple[Proxy, Proxy],
) -> None:
    for last in range(1, TURNS):
        two = Two(*proxies)
        asking = []
        for turn in range(TURNS):
            if turn == last:
                two.first.cut()
            asking.append(asyncio.ensure_future(two.ask()))
            await asyncio.sleep(0)
        for ended in await asyncio.gather(*asking, return_exceptions=True):
            assert ended is None or isinstance(ended, Unreachable), ended
        await until_it_is_left(two)
        await eventually(lambda: not proxies[0].connections, f"no connection; {last} turns")
        await two.redis.close()
        await eventually(lambda: not proxies[1].connections, "no connection to the other")
