"""RabbitMQ may close a connection or a channel after any number of frames: the error is
Unreachable, and every confirmed message is delivered."""

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
from tests.integration.test_broker_cuts import (
    MIN_CUTS,
    Account,
    connected,
    consume_until,
    run_session,
)
from tests.support.cut_positions import every_position
from tests.support.proxy import Direction, Proxy

TIMEOUT_SECONDS = 900.0
HEADER, END = 7, 1
"""Bytes of a frame before and after its payload."""

DISCONNECT_SECONDS = 0.05
"""Seconds between the close frame and the end of the connection."""

CONNECTION_CLOSED = Connection.Close(320, "CONNECTION_FORCED - broker forced closure", 0, 0)
CHANNEL_CLOSED = Channel.Close(504, "CHANNEL_ERROR - it is over", 0, 0)


class ClosingProxy(Proxy):
    """Sends a close frame in the server's name after this number of frames of the server, counted
    over all connections. If it closes the connection, the connection then ends."""

    def __init__(self, url: str, after: int, close_frame: Connection.Close | Channel.Close) -> None:
        parts = urlsplit(url)
        super().__init__((parts.hostname or "", parts.port or 0))
        self.left = after
        self._close = close_frame

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pair: object,
        direction: Direction,
    ) -> None:
        if direction is Direction.TO_SERVER:
            await super()._forward(reader, writer, pair, direction)
            return
        with suppress(asyncio.IncompleteReadError):
            async for channel, frame in frames(reader):
                writer.write(frame)
                if not self._is_time(channel):
                    continue
                if isinstance(self._close, Channel.Close):
                    writer.write(marshal(self._close, channel))
                    continue
                writer.write(marshal(self._close, 0))
                await asyncio.sleep(DISCONNECT_SECONDS)
                break
        writer.transport.abort()

    def _is_time(self, channel: int) -> bool:
        if channel == 0 and isinstance(self._close, Channel.Close):
            return False  # channel 0 is the connection itself
        self.left -= 1
        return self.left == 0


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bytes]]:
    """The frames of a server, with the numbers of their channels."""
    while True:
        header = await reader.readexactly(HEADER)
        size = int.from_bytes(header[3:7], "big")
        frame = header + await reader.readexactly(size + END)
        yield int.from_bytes(header[1:3], "big"), frame


@every_position
@pytest.mark.parametrize(
    "close_frame", [CONNECTION_CLOSED, CHANNEL_CLOSED], ids=lambda close: close.name
)
async def test_a_close_after_any_number_of_frames_raises_unreachable_and_loses_nothing(
    rabbitmq_server: Server,
    close_frame: Connection.Close | Channel.Close,
    *,
    every_position: bool,
) -> None:
    account, prefix = Account(), f"test-{secrets.token_hex(5)}"
    parts, unreachable = urlsplit(rabbitmq_server.url), 0
    async with asyncio.timeout(TIMEOUT_SECONDS):
        # Each takes its turn: channels after 1, 4, 7... frames, connections after 2, 5, 8...
        first = 1 if every_position or close_frame is CHANNEL_CLOSED else 2
        for after in count(first, 1 if every_position else 3):
            proxy = ClosingProxy(rabbitmq_server.url, after, close_frame)
            port = await proxy.open()
            proxied = parts.netloc.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{port}")
            try:
                await run_session(parts._replace(netloc=proxied).geturl(), prefix, account)
            except Unreachable:
                unreachable += 1
            finally:
                await proxy.close()
            if proxy.left > 0:
                break
        async with connected(rabbitmq_server.url, prefix) as transport:
            await consume_until(transport, account.confirmed, account)
    assert unreachable > MIN_CUTS
