"""The proxy does to connections what its methods promise, and nothing else."""

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
"""Seconds without a byte after which the connection counts as silent."""


class Client:
    """A client of the echo server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def receive(self, count: int) -> bytes:
        async with asyncio.timeout(60):
            return await self.reader.readexactly(count)

    async def echoed(self, text: bytes) -> bool:
        await self.send(text)
        return await self.receive(len(text)) == text

    async def receives_nothing(self) -> bool:
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
    """The URL of a server that sends a greeting, and then echoes what it receives."""
    open_writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_writers.append(writer)
        writer.write(greeting)
        try:
            while text := await reader.read(1000):
                writer.write(text)
                await writer.drain()
        except ConnectionError:
            pass  # the connection was cut, as these tests do
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
    """Connects to a proxy; the connections are closed after the test."""
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


async def test_forwards_and_counts_all_bytes(connect: Connect) -> None:
    async with proxied() as proxy:
        assert proxy.url.startswith("echo://user:secret@127.0.0.1:")
        client = await connect(proxy)
        assert await client.echoed(b"x" * 300_000)
        assert proxy.passed == {Direction.TO_SERVER: 300_000, Direction.TO_CLIENT: 300_000}
        assert proxy.connections == 1


async def test_forwards_the_end_of_a_clients_stream(connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        await client.send(b"bye")
        client.writer.write_eof()
        async with asyncio.timeout(60):
            assert await client.reader.read() == b"bye"


async def test_cut_resets_open_connections_and_accepts_new_ones(connect: Connect) -> None:
    async with proxied() as proxy:
        clients = [await connect(proxy), await connect(proxy)]
        for client in clients:
            assert await client.echoed(b"hello")
        proxy.cut()
        for client in clients:
            assert await client.is_reset()
        assert await (await connect(proxy)).echoed(b"again")


@pytest.mark.parametrize(("direction", "heard"), [("TO_SERVER", 10), ("TO_CLIENT", 10)])
async def test_cuts_after_a_number_of_bytes(direction: str, heard: int, connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        assert await client.echoed(b"before")
        cutting = asyncio.ensure_future(proxy.cut_after(heard, Direction[direction]))
        await asyncio.sleep(0)
        await client.send(b"0123456789abcdef")
        assert await client.is_reset()
        await asyncio.wait_for(cutting, 60)
        assert proxy.passed[Direction[direction]] == len(b"before") + heard
        assert await (await connect(proxy)).echoed(b"0123456789abcdef")


async def test_refuses_connections_and_accepts_them_again_at_the_same_address(
    connect: Connect,
) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        assert await client.echoed(b"hello")
        async with proxy.refusing():
            assert await client.is_reset()
            with pytest.raises(ConnectionRefusedError):
                await connect(proxy)
        assert await (await connect(proxy)).echoed(b"again")


async def test_silence_delays_all_bytes_and_loses_none(connect: Connect) -> None:
    async with proxied(greeting=b"!") as proxy:
        old = await connect(proxy)
        assert await old.receive(1) == b"!"
        with proxy.silent():
            await old.send(b"hello")
            new = await connect(proxy)
            assert await old.receives_nothing()
            assert await new.receives_nothing()
        assert await old.receive(5) == b"hello"
        assert await new.receive(1) == b"!"


@pytest.mark.parametrize("direction", Direction)
async def test_falls_silent_after_a_number_of_bytes_and_loses_none(
    direction: Direction, connect: Connect
) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        assert await client.echoed(b"before")
        async with proxy.silent_after(10, direction) as silent:
            await client.send(b"0123456789more")
            async with asyncio.timeout(60):
                await silent.wait()
            if direction is Direction.TO_CLIENT:
                assert await client.receive(10) == b"0123456789"
            assert await client.receives_nothing()
            other = await connect(proxy)
            await other.send(b"hello")
            assert await other.receives_nothing()
        heard = b"0123456789more" if direction is Direction.TO_SERVER else b"more"
        assert await client.receive(len(heard)) == heard
        assert await other.receive(5) == b"hello"


async def test_delays_the_end_of_a_connection(
    connect: Connect,
) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        with proxy.keeping_ends():
            await client.send(b"bye")
            client.writer.write_eof()
            assert await client.receive(3) == b"bye"
            assert await client.receives_nothing()
        async with asyncio.timeout(60):
            assert await client.reader.read() == b""


async def test_forgotten_connections_stay_open_and_silent(connect: Connect) -> None:
    async with proxied() as proxy:
        old = await connect(proxy)
        assert await old.echoed(b"hello")
        proxy.forget()
        await old.send(b"are you there?")
        assert await old.receives_nothing()
        assert await (await connect(proxy)).echoed(b"again")
        with proxy.silent():
            pass
        proxy.cut()
        assert await old.receives_nothing()


async def test_throttles_each_direction(connect: Connect) -> None:
    async with proxied() as proxy:
        client = await connect(proxy)
        proxy.throttle(10_000)
        began = time.monotonic()
        assert await client.echoed(b"x" * 2_000)
        assert time.monotonic() - began > 0.15
        proxy.throttle(None)
        assert await client.echoed(b"x" * 300_000)


async def test_retarget_connects_new_clients_to_another_server(connect: Connect) -> None:
    async with proxied(greeting=b"1") as proxy, echo(greeting=b"2") as other:
        client = await connect(proxy)
        assert await client.receive(1) == b"1"
        proxy.retarget(other)
        assert await client.is_reset()
        assert await (await connect(proxy)).receive(1) == b"2"


async def test_resets_clients_of_an_unreachable_server(connect: Connect) -> None:
    async with echo() as gone:
        pass
    async with proxy_before(gone) as proxy:
        assert await (await connect(proxy)).is_reset()


async def test_a_url_without_a_port_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="host and a port"):
        async with proxy_before("redis://localhost"):
            pass
