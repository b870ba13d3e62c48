"""Proxies that count what clients ask of PostgreSQL and of Redis, and pass everything on.

A statement is what PostgreSQL reports as complete, by the first word of its command tag. A round
trip is a request that comes after an answer: all that a client sends before it has an answer
belongs to one. What a script of Redis does is one command.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Thread
from urllib.parse import urlsplit

WRITING = ("INSERT", "UPDATE", "DELETE")

_CHUNK = 65_536
_ASKS_FOR_ENCRYPTION = (80877103, 80877104)
"""The codes with which a client of PostgreSQL asks for TLS and for GSSAPI, before its greeting."""

_Greet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]
"""Returns what a client has sent before its requests can be read."""


@dataclass
class Traffic:
    """What has passed so far."""

    statements: Counter[str] = field(default_factory=Counter)
    """By the first word of PostgreSQL's command tag."""
    texts: Counter[str] = field(default_factory=Counter)
    """How often each statement was asked for, by its text."""
    commands: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    """COMMIT, and statements that write outside a transaction."""
    postgres_trips: int = 0
    redis_trips: int = 0

    def copy(self) -> Traffic:
        """As it is now."""
        return replace(
            self,
            statements=self.statements.copy(),
            texts=self.texts.copy(),
            commands=self.commands.copy(),
        )


@contextmanager
def postgres_proxy(url: str, traffic: Traffic) -> Iterator[str]:
    """The URL of the proxy of this server. It declines encryption."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        while int.from_bytes((head := await reader.readexactly(8))[4:]) in _ASKS_FOR_ENCRYPTION:
            writer.write(b"N")
        return head + await reader.readexactly(int.from_bytes(head[:4]) - len(head))

    def meter() -> _Meter:
        def trip() -> None:
            traffic.postgres_trips += 1

        return _Meter(trip, _Texts(traffic.texts).take, _Tags(traffic).take)

    with _proxy(url, greet, meter) as through:
        yield through


@contextmanager
def redis_proxy(url: str, traffic: Traffic) -> Iterator[str]:
    """The URL of the proxy of this server."""

    async def greet(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> bytes:
        return b""

    def meter() -> _Meter:
        def trip() -> None:
            traffic.redis_trips += 1

        return _Meter(trip, lambda held: _take_commands(held, traffic.commands), lambda _: b"")

    with _proxy(url, greet, meter) as through:
        yield through


class _Meter:
    """Reads one connection. The functions count what is complete in what they are given, and return
    the rest."""

    def __init__(
        self,
        trip: Callable[[], None],
        take_requests: Callable[[bytes], bytes],
        take_answers: Callable[[bytes], bytes],
    ) -> None:
        self._trip = trip
        self._take_requests = take_requests
        self._take_answers = take_answers
        self._requests = self._answers = b""
        self._is_answered = True

    def request(self, chunk: bytes) -> None:
        if self._is_answered:
            self._trip()
        self._is_answered = False
        self._requests = self._take_requests(self._requests + chunk)

    def answer(self, chunk: bytes) -> None:
        self._is_answered = True
        self._answers = self._take_answers(self._answers + chunk)


def _take_messages(held: bytes, read: Callable[[bytes, bytes], None]) -> bytes:
    """Read PostgreSQL's messages: a letter, the length with its own four bytes, and data."""
    at = 0
    while len(held) >= at + 5:
        end = at + 1 + int.from_bytes(held[at + 1 : at + 5])
        if len(held) < end:
            break
        read(held[at : at + 1], held[at + 5 : end])
        at = end
    return held[at:]


class _Texts:
    """Counts the statements that are asked for on one connection. A prepared one has a name, by
    which it is executed."""

    def __init__(self, texts: Counter[str]) -> None:
        self._texts = texts
        self._prepared: dict[bytes, str] = {}

    def take(self, held: bytes) -> bytes:
        return _take_messages(held, self._read)

    def _read(self, kind: bytes, data: bytes) -> None:
        if kind == b"Q":
            self._texts[_text(data.split(b"\0")[0])] += 1
        elif kind == b"P":  # parse: the name, and the text
            name, text = data.split(b"\0", 2)[:2]
            self._prepared[name] = _text(text)
        elif kind == b"B":  # bind: the portal, and the name
            self._texts[self._prepared.get(data.split(b"\0", 2)[1], "?")] += 1


def _text(statement: bytes) -> str:
    return " ".join(statement.decode().split())


class _Tags:
    """Counts the command tags in the answers on one connection."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._is_in_transaction = False

    def take(self, held: bytes) -> bytes:
        return _take_messages(held, self._read)

    def _read(self, kind: bytes, data: bytes) -> None:
        if kind != b"C":
            return
        tag = data[:-1].split(b" ")[0].decode()
        self._traffic.statements[tag] += 1
        if tag == "BEGIN":
            self._is_in_transaction = True
        elif tag in ("COMMIT", "ROLLBACK"):
            self._is_in_transaction = False
        if tag == "COMMIT" or (tag in WRITING and not self._is_in_transaction):
            self._traffic.commits += 1


def _take_commands(held: bytes, commands: Counter[str]) -> bytes:
    """Count the commands in requests to Redis: arrays of strings, the first of them the name."""
    at = 0
    while (line := held.find(b"\r\n", at)) >= 0:
        start, words = line + 2, []
        for _ in range(int(held[at + 1 : line])):
            line = held.find(b"\r\n", start)
            if line < 0:
                return held[at:]
            end = line + 2 + int(held[start + 1 : line])
            if len(held) < end + 2:
                return held[at:]
            words.append(held[line + 2 : end])
            start = end + 2
        commands[words[0].decode().upper()] += 1
        at = start
    return held[at:]


@contextmanager
def _proxy(url: str, greet: _Greet, meter: Callable[[], _Meter]) -> Iterator[str]:
    """The URL with the host and port of a proxy, which runs in a thread of its own: a client may
    block the event loop until it has an answer."""
    parsed = urlsplit(url)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        metered = meter()
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await greet(reader, writer)
            upstream, downstream = await asyncio.open_connection(parsed.hostname, parsed.port)
            downstream.write(head)
            await asyncio.gather(
                _pass_on(reader, downstream, metered.request),
                _pass_on(upstream, writer, metered.answer),
            )

    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.start_server(serve, "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(listening, loop).result()
    try:
        port = server.sockets[0].getsockname()[1]
        credentials, at, _ = parsed.netloc.rpartition("@")
        yield parsed._replace(netloc=f"{credentials}{at}127.0.0.1:{port}").geturl()
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    connections = asyncio.all_tasks() - {asyncio.current_task()}
    for each in connections:
        each.cancel()
    await asyncio.gather(*connections, return_exceptions=True)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, read: Callable[[bytes], None]
) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            read(chunk)
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()
