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
    """The direction in which bytes are forwarded."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


@dataclass(eq=False, slots=True)
class _Pair:
    """A client's connection and, once it exists, the proxy's connection to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    flows: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        """Reset both connections at once; bytes in flight are lost."""
        for writer in (self.client, self.server):
            if writer is not None:
                _reset(writer)


@dataclass(eq=False, slots=True)
class _Trigger:
    """An action that runs once, after this number of further bytes in one direction."""

    direction: Direction
    left: int
    action: Callable[[], None]
    fired: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """Forwards bytes between its clients, which connect to `url`, and the server."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.url = ""
        self.passed = dict.fromkeys(Direction, 0)
        """How many bytes were forwarded in each direction so far."""
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
        self._trigger: _Trigger | None = None

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._pairs)

    # Faults

    def cut(self) -> None:
        """Reset all connections; bytes in flight are lost. New connections are accepted."""
        for pair in self._pairs:
            pair.reset()

    async def cut_after(self, count: int, direction: Direction = Direction.TO_SERVER) -> None:
        """Forward `count` more bytes in this direction, counted over all connections, and then cut
        them all. Returns after the cut."""
        trigger = self._trigger = _Trigger(direction, count, self.cut)
        try:
            await trigger.fired.wait()
        finally:
            self._trigger = None

    @asynccontextmanager
    async def silent_after(
        self, count: int, direction: Direction = Direction.TO_SERVER
    ) -> AsyncIterator[asyncio.Event]:
        """While the context is open, forward `count` more bytes in this direction, counted over all
        connections, and then fall silent, as `silent` does. The yielded event is then set."""
        trigger = self._trigger = _Trigger(direction, count, self._fall_silent)
        try:
            yield trigger.fired
        finally:
            self._trigger = None
            self._resume()

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """While the context is open, nothing listens at this address: open connections are reset
        and new ones refused."""
        self._stop_listening()
        self.cut()
        try:
            yield
        finally:
            await self._listen()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """While the context is open, forward nothing in either direction, without any error.
        New connections are accepted, but get no answer. Afterwards all bytes are forwarded."""
        self._fall_silent()
        try:
            yield
        finally:
            self._resume()

    @contextmanager
    def keeping_ends(self) -> Iterator[None]:
        """While the context is open, forward the last bytes of a connection, but not its end, as if
        the end came in a later packet. Afterwards the ends are forwarded too."""
        self._ends.clear()
        try:
            yield
        finally:
            self._ends.set()

    def forget(self) -> None:
        """Forward no further byte in the open connections, without closing them, like a firewall
        that was restarted. New connections work."""
        for pair in self._pairs:
            pair.flows = asyncio.Event()
        self._pairs.clear()

    def throttle(self, bytes_per_second: float | None) -> None:
        """Limit the rate in each connection and direction; None is no limit."""
        self._bytes_per_second = bytes_per_second

    def retarget(self, url: str) -> None:
        """Cut all connections, and connect new clients to the server of this URL."""
        self._target = _address(url)
        self.cut()

    # Implementation

    async def open(self, port: int = 0) -> int:
        """Listen on this port of 127.0.0.1, or on a free one; returns the port."""
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
        """Cut all connections, and return once they are closed."""
        self._stop_listening()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _fall_silent(self) -> None:
        self._silent = True
        for pair in self._pairs:
            pair.flows.clear()

    def _resume(self) -> None:
        self._silent = False
        for pair in self._pairs:
            pair.flows.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = _Pair(writer)
        if not self._silent:
            pair.flows.set()
        self._pairs.add(pair)
        task = asyncio.ensure_future(self._serve(reader, pair))
        self._serving.add(task)

        def end(_: object) -> None:  # also if the task was cancelled before it began
            self._serving.discard(task)
            self._pairs.discard(pair)
            pair.reset()

        task.add_done_callback(end)

    async def _serve(self, reader: asyncio.StreamReader, pair: _Pair) -> None:
        await pair.flows.wait()
        if pair.client.is_closing():
            return
        with suppress(OSError):  # the server is unreachable, or one side was cut
            far_reader, pair.server = await asyncio.open_connection(*self._target)
            await asyncio.gather(
                self._forward(reader, pair.server, pair, Direction.TO_SERVER),
                self._forward(far_reader, pair.client, pair, Direction.TO_CLIENT),
            )

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: _Pair,
        direction: Direction,
    ) -> None:
        """Forward until the reader ends, and then end the other side."""
        while data := await reader.read(self._chunk()):
            while data:
                await pair.flows.wait()
                part = self._up_to_trigger(data, direction)
                data = data[len(part) :]
                writer.write(part)
                await writer.drain()
                self.passed[direction] += len(part)
                self.ends[direction].append(self.passed[direction])
                await self._after_forwarding(part)
        await pair.flows.wait()
        await self._ends.wait()
        with suppress(NotImplementedError, OSError):
            writer.write_eof()

    async def _after_forwarding(self, part: bytes) -> None:
        """Run the trigger if it is due, and sleep if the direction is throttled."""
        trigger = self._trigger
        if trigger is not None and trigger.left == 0:
            self._trigger = None
            trigger.fired.set()
            trigger.action()
        if self._bytes_per_second is not None:
            await asyncio.sleep(len(part) / self._bytes_per_second)

    def _chunk(self) -> int:
        if self._bytes_per_second is None:
            return CHUNK
        return max(int(self._bytes_per_second / SLICES_PER_SECOND), 1)

    def _up_to_trigger(self, data: bytes, direction: Direction) -> bytes:
        trigger = self._trigger
        if trigger is None or trigger.direction is not direction:
            return data
        part = data[: trigger.left]
        trigger.left -= len(part)
        return part


@asynccontextmanager
async def proxy_before(url: str) -> AsyncIterator[Proxy]:
    """A proxy on a free port of 127.0.0.1 for the server of this URL, which must name its port."""
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
    """End a connection by a TCP reset: the other side gets an error, and not an orderly end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
