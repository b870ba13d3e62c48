"""A TCP proxy in front of a server, with which a test breaks connections as networks do.

    async with proxy_before("amqp://guest:guest@127.0.0.1:5672/") as proxy:
        ...  # connect to proxy.url
        proxy.cut()

It runs on the test's own event loop, so a test that blocks the loop blocks the network.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from urllib.parse import urlsplit, urlunsplit

from eventmesh.errors import UsageError
from eventmesh.testing.servers.processes import free_port

CHUNK = 65_536
LISTEN_ATTEMPTS = 5
"""Another process may take the free port before we listen on it, so this is retried."""

SLICES_PER_SECOND = 50
"""Slices per second of a throttled direction; each slice is forwarded at once."""


class Direction(Enum):
    """Which way bytes go."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


@dataclass(eq=False, slots=True)
class _Pair:
    """A client's connection and, once it is made, ours to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        """End both at once by a TCP reset, with whatever is on its way."""
        for writer in (self.client, self.server):
            if writer is not None:
                _reset(writer)


@dataclass(eq=False, slots=True)
class _Trap:
    """Does something, once, when so many bytes more have gone one way."""

    direction: Direction
    left: int
    spring: Callable[[], None]
    sprung: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """Passes bytes on between those who connect to `url` and the server, as long as it is let."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.url = ""
        self.passed = dict.fromkeys(Direction, 0)
        """How many bytes went which way so far."""
        self.ends: dict[Direction, list[int]] = {direction: [] for direction in Direction}
        """The values of `passed` after each part that was forwarded at once."""
        self._target = target
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._silent = False
        self._ends = asyncio.Event()
        self._ends.set()
        self._bytes_per_second: float | None = None
        self._trap: _Trap | None = None

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._pairs)

    # What happens to connections

    def cut(self) -> None:
        """Reset all connections, with whatever is on its way; new ones are taken."""
        for pair in self._pairs:
            pair.reset()

    async def cut_after(self, count: int, direction: Direction = Direction.TO_SERVER) -> None:
        """Pass on `count` bytes more in this direction, in whichever connections, and then cut
        all. Returns once it has happened."""
        trap = self._trap = _Trap(direction, count, self.cut)
        try:
            await trap.sprung.wait()
        finally:
            self._trap = None

    @asynccontextmanager
    async def silent_after(
        self, count: int, direction: Direction = Direction.TO_SERVER
    ) -> AsyncIterator[asyncio.Event]:
        """While the context is open, pass on `count` bytes more in this direction, in whichever
        connections, and then nothing either way, as when `silent`. The event is set then."""
        trap = self._trap = _Trap(direction, count, self._hush)
        try:
            yield trap.sprung
        finally:
            self._trap = None
            self._go_on()

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """While the context is open, there is nobody at this address: connections that are open
        are reset, and new ones refused."""
        self._stop_listening()
        self.cut()
        try:
            yield
        finally:
            await self._listen()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """While the context is open, nothing passes either way, and nobody is told. Connections
        are taken, and not answered. Afterwards all goes on, with nothing lost."""
        self._hush()
        try:
            yield
        finally:
            self._go_on()

    @contextmanager
    def keeping_ends(self) -> Iterator[None]:
        """While the context is open, the last bytes of a connection pass, but not its end, as when
        the two come in packets of their own; afterwards the ends pass, too."""
        self._ends.clear()
        try:
            yield
        finally:
            self._ends.set()

    def forget(self) -> None:
        """Never pass another byte in the connections that are open, without closing them, as a
        firewall does that was restarted; new ones work."""
        for pair in self._pairs:
            pair.flows = asyncio.Event()
        self._pairs.clear()

    def throttle(self, bytes_per_second: float | None) -> None:
        """Pass on no more than this in each connection and direction; None: all there is."""
        self._bytes_per_second = bytes_per_second

    def retarget(self, url: str) -> None:
        """Cut all connections; those made from now on lead to the server of this URL."""
        self._target = _address(url)
        self.cut()

    # How it works

    async def open(self, port: int = 0) -> int:
        """Listen on this port of 127.0.0.1, or on a free one; returns which."""
        for attempt in range(LISTEN_ATTEMPTS):
            self._port = port or free_port()
            try:
                await self._listen()
            except OSError:
                if port or attempt == LISTEN_ATTEMPTS - 1:
                    raise
            else:
                break
        return self._port

    async def close(self) -> None:
        """Cut all connections and return once nothing of them is left."""
        self._stop_listening()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._take, "127.0.0.1", self._port)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _hush(self) -> None:
        self._silent = True
        for pair in self._pairs:
            pair.flows.clear()

    def _go_on(self) -> None:
        self._silent = False
        for pair in self._pairs:
            pair.flows.set()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        if not self._silent:
            pair.flows.set()
        self._pairs.add(pair)
        task = asyncio.ensure_future(self._serve(reader, pair))
        self._serving.add(task)

        def end(_: object) -> None:  # also where it was cancelled before it began
            self._serving.discard(task)
            self._pairs.discard(pair)
            pair.reset()

        task.add_done_callback(end)

    async def _serve(self, reader: asyncio.StreamReader, pair: _Pair) -> None:
        await pair.flows.wait()
        if pair.client.is_closing():
            return
        with suppress(OSError):  # the server is away, or one side was cut: then so is the other
            far_reader, pair.server = await asyncio.open_connection(*self._target)
            await asyncio.gather(
                self._pass_on(reader, pair.server, pair, Direction.TO_SERVER),
                self._pass_on(far_reader, pair.client, pair, Direction.TO_CLIENT),
            )

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: _Pair,
        direction: Direction,
    ) -> None:
        """Pass on until the end of what is read, and end the other side then."""
        while data := await reader.read(self._chunk()):
            while data:
                await pair.flows.wait()
                part = self._up_to_the_trap(data, direction)
                data = data[len(part) :]
                writer.write(part)
                await writer.drain()
                self.passed[direction] += len(part)
                self.ends[direction].append(self.passed[direction])
                await self._after(part)
        await pair.flows.wait()
        await self._ends.wait()
        with suppress(NotImplementedError, OSError):
            writer.write_eof()

    async def _after(self, part: bytes) -> None:
        """Spring a trap that is due, and let time pass where there is to be some."""
        trap = self._trap
        if trap is not None and trap.left == 0:
            self._trap = None
            trap.sprung.set()
            trap.spring()
        if self._bytes_per_second is not None:
            await asyncio.sleep(len(part) / self._bytes_per_second)

    def _chunk(self) -> int:
        if self._bytes_per_second is None:
            return CHUNK
        return max(int(self._bytes_per_second / SLICES_PER_SECOND), 1)

    def _up_to_the_trap(self, data: bytes, direction: Direction) -> bytes:
        trap = self._trap
        if trap is None or trap.direction is not direction:
            return data
        part = data[: trap.left]
        trap.left -= len(part)
        return part


@asynccontextmanager
async def proxy_before(url: str) -> AsyncIterator[Proxy]:
    """A proxy on a free port of 127.0.0.1 before the server of this URL, which names its port."""
    proxy = Proxy(_address(url))
    port = await proxy.open()
    parts = urlsplit(url)
    credentials, at, _ = parts.netloc.rpartition("@")
    proxy.url = urlunsplit(parts._replace(netloc=f"{credentials}{at}127.0.0.1:{port}"))
    try:
        yield proxy
    finally:
        await proxy.close()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise UsageError("A proxy needs a URL with a host and a port.")
    return parts.hostname, parts.port


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a TCP reset: the other side reads no tidy end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
