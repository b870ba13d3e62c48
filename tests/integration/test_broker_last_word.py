"""RabbitMQ ends a connection or a channel by its word, after however many frames: what comes of it
is Unreachable, and whatever was published for sure is handed out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from urllib.parse import urlsplit

import pytest
from pamqp.commands import Channel, Connection
from pamqp.frame import marshal

from eventmesh.errors import Unreachable
from eventmesh.testing.servers import Server
from tests.integration.test_broker_cuts import ENOUGH, Account, connected, hear, live
from tests.support.proxy import Direction, Proxy

PATIENCE = 300.0
HEADER, END = 7, 1
"""Bytes of a frame, before and after what it holds."""

BETWEEN_WORD_AND_END = 0.05
"""Seconds."""

CONNECTION_CLOSED = Connection.Close(320, "CONNECTION_FORCED - broker forced closure", 0, 0)
CHANNEL_CLOSED = Channel.Close(504, "CHANNEL_ERROR - it is over", 0, 0)


class LastWord(Proxy):
    """Says a word in the server's name when the server has said so many frames, on all connections
    together. After a connection's last word comes its end."""

    def __init__(self, url: str, after: int, word: Connection.Close | Channel.Close) -> None:
        parts = urlsplit(url)
        super().__init__((parts.hostname or "", parts.port or 0))
        self.left = after
        self._word = word

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: object,
        direction: Direction,
    ) -> None:
        if direction is Direction.TO_SERVER:
            await super()._pass_on(reader, writer, pair, direction)
            return
        with suppress(asyncio.IncompleteReadError):
            async for channel, frame in frames(reader):
                writer.write(frame)
                if not self._is_time(channel):
                    continue
                if isinstance(self._word, Channel.Close):
                    writer.write(marshal(self._word, channel))
                    continue
                writer.write(marshal(self._word, 0))
                await asyncio.sleep(BETWEEN_WORD_AND_END)
                break
        writer.transport.abort()

    def _is_time(self, channel: int) -> bool:
        if channel == 0 and isinstance(self._word, Channel.Close):
            return False  # that is none
        self.left -= 1
        return self.left == 0


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """What a server says, and on which channels."""
    while True:
        header = await reader.readexactly(HEADER)
        size = int.from_bytes(header[3:7], "big")
        frame = header + await reader.readexactly(size + END)
        yield int.from_bytes(header[1:3], "big"), frame


@pytest.mark.parametrize("word", [CONNECTION_CLOSED, CHANNEL_CLOSED], ids=lambda word: word.name)
async def test_a_connection_closed_after_any_number_of_frames_is_unreachable_and_loses_nothing(
    rabbitmq_server: Server, word: Connection.Close | Channel.Close
) -> None:
    account, prefix = Account(), f"test-{secrets.token_hex(5)}"
    parts, unreachable = urlsplit(rabbitmq_server.url), 0
    async with asyncio.timeout(PATIENCE):
        for after in count(1):
            proxy = LastWord(rabbitmq_server.url, after, word)
            port = await proxy.open()
            there = parts.netloc.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
            try:
                await live(parts._replace(netloc=there).geturl(), prefix, account)
            except Unreachable:
                unreachable += 1
            finally:
                await proxy.close()
            if proxy.left > 0:
                break
        async with connected(rabbitmq_server.url, prefix) as transport:
            await hear(transport, account.published, account)
    assert unreachable > ENOUGH
