"""The proxy does to connections what its methods say, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from eventmesh.errors import UsageError
from tests.support.proxy import Direction, Proxy, proxy_before

SILENCE = 0.1
"""Seconds without a byte that show that none comes."""


class Client:
    """A connection that is echoed what it says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def hear(self, count: int) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.readexactly(count)

    async def echoed(self, text: bytes) -> bool:
        await self.say(text)
        return await self.hear(len(text)) == text

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(SILENCE):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    async def is_reset(self) -> bool:
        async with asyncio.timeout(60):
            try:
                while await self.reader.read(1000):
                    pass
            except ConnectionResetError:
                return True
        return False


@asynccontextmanager
async def echo(greeting: bytes = b"") -> AsyncIterator[str]:
    """The URL of a server that greets, and says again what it is told."""
    open_writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        writer.write(greeting)
        try:
            while text := await reader.read(1000):
                writer.write(text)
                await writer.drain()
        except ConnectionError:
            pass  # it was cut, as is tested here
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"echo://user:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/path"
    finally:
        server.close()
        for writer in open_writers:
            writer.transport.abort()
        await server.wait_closed()


Connect = Callable[[Proxy], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects to a proxy; what was connected is closed after the test."""
    clients: list[Client] = []

    async def to(proxy: Proxy) -> Client:
        address = urlsplit(proxy.url)
        clients.append(Client(*await asyncio.open_connection(address.hostname, address.port)))
        return clients[-1]

    yield to
    for client in clients:
        client.writer.transport.abort()


@asynccontextmanager
async def proxied(greeting: bytes = b"") -> AsyncIterator[Proxy]:
    async with echo(greeting) as url, proxy_before(url) as proxy:
        yield proxy


async def test_passes_everything_on_and_counts_it(connect: Connect) -> None:
    async with proxied() as proxy:
        assert proxy.url.startswith("echo://user:secret@127.0.0.1:")
        client = await connect(proxy)
        assert await client.echoed(b"x" * 300_000)
        assert proxy.passed == {Direction.TO_SERVER: 300_000, Direction.TO_CLIENT: 300_000}
        assert proxy.connections == 1


async def test_passes_on_the_end_of_what_a_client_says(connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        await client.say(b"bye")
        client.writer.write_eof()
        async with asyncio.timeout(60):
            assert await client.reader.read() == b"bye"


async def test_cut_resets_what_is_open_and_takes_new_connections(connect: Connect) -> None:
    async with proxied() as proxy:
        clients = [await connect(proxy), await connect(proxy)]
        for client in clients:
            assert await client.echoed(b"hello")
        proxy.cut()
        for client in clients:
            assert await client.is_reset()
        assert await (await connect(proxy)).echoed(b"again")


@pytest.mark.parametrize(("direction", "heard"), [("TO_SERVER", 10), ("TO_CLIENT", 10)])
async def test_cuts_after_so_many_bytes(direction: str, heard: int, connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        assert await client.echoed(b"before")
        cutting = asyncio.ensure_future(proxy.cut_after(heard, Direction[direction]))
        await asyncio.sleep(0)
        await client.say(b"0123456789abcdef")
        assert await client.is_reset()
        await asyncio.wait_for(cutting, 60)
        assert proxy.passed[Direction[direction]] == len(b"before") + heard
        assert await (await connect(proxy)).echoed(b"0123456789abcdef")


async def test_refuses_and_takes_connections_again_at_the_same_address(connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        assert await client.echoed(b"hello")
        async with proxy.refusing():
            assert await client.is_reset()
            with pytest.raises(ConnectionRefusedError):
                await connect(proxy)
        assert await (await connect(proxy)).echoed(b"again")


async def test_silence_holds_everything_and_loses_nothing(connect: Connect) -> None:
    async with proxied(greeting=b"!") as proxy:
        old = await connect(proxy)
        assert await old.hear(1) == b"!"
        with proxy.silent():
            await old.say(b"hello")
            new = await connect(proxy)
            assert await old.hears_nothing()
            assert await new.hears_nothing()
        assert await old.hear(5) == b"hello"
        assert await new.hear(1) == b"!"


@pytest.mark.parametrize("direction", Direction)
async def test_falls_silent_after_so_many_bytes_and_loses_nothing(
    direction: Direction, connect: Connect
) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        assert await client.echoed(b"before")
        async with proxy.silent_after(10, direction) as silent:
            await client.say(b"0123456789more")
            async with asyncio.timeout(60):
                await silent.wait()
            if direction is Direction.TO_CLIENT:
                assert await client.hear(10) == b"0123456789"
            assert await client.hears_nothing()
            other = await connect(proxy)
            await other.say(b"hello")
            assert await other.hears_nothing()
        heard = b"0123456789more" if direction is Direction.TO_SERVER else b"more"
        assert await client.hear(len(heard)) == heard
        assert await other.hear(5) == b"hello"


async def test_keeps_the_end_of_a_connection_and_passes_it_on_afterwards(
    connect: Connect,
) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        with proxy.keeping_ends():
            await client.say(b"bye")
            client.writer.write_eof()
            assert await client.hear(3) == b"bye"
            assert await client.hears_nothing()
        async with asyncio.timeout(60):
            assert await client.reader.read() == b""


async def test_what_it_forgets_stays_open_and_silent(connect: Connect) -> None:
    async with proxied() as proxy:
        old = await connect(proxy)
        assert await old.echoed(b"hello")
        proxy.forget()
        await old.say(b"are you there?")
        assert await old.hears_nothing()
        assert await (await connect(proxy)).echoed(b"again")
        with proxy.silent():
            pass
        proxy.cut()
        assert await old.hears_nothing()


async def test_throttles_each_direction(connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        proxy.throttle(10_000)
        began = time.monotonic()
        assert await client.echoed(b"x" * 2_000)
        assert time.monotonic() - began > 0.15
        proxy.throttle(None)
        assert await client.echoed(b"x" * 300_000)


async def test_leads_elsewhere_when_told(connect: Connect) -> None:
    async with proxied(greeting=b"1") as proxy, echo(greeting=b"2") as other:
        client = await connect(proxy)
        assert await client.hear(1) == b"1"
        proxy.retarget(other)
        assert await client.is_reset()
        assert await (await connect(proxy)).hear(1) == b"2"


async def test_resets_clients_of_a_server_that_is_away(connect: Connect) -> None:
    async with echo() as gone:
        pass
    async with proxy_before(gone) as proxy:
        assert await (await connect(proxy)).is_reset()


async def test_a_url_without_a_port_is_refused() -> None:
    with pytest.raises(UsageError, match="host and a port"):
        async with proxy_before("redis://localhost"):
            pass
