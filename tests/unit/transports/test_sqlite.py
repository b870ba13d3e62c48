"""What is particular to the SQLite transport. See tests/conformance for what all promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import UsageError
from eventmesh.transports.base import Subscription, TransportOptions
from eventmesh.transports.outcome import Dead
from eventmesh.transports.sqlite import SqliteTransport, path_of
from eventmesh.wire.envelope import Envelope

PAID = Subscription("orders.note_payment", ("payments.paid",))


@pytest.fixture
async def transport(tmp_path: Path) -> AsyncIterator[SqliteTransport]:
    url = f"sqlite:///{tmp_path}/broker.db"
    transport = SqliteTransport(url, SystemClock(), TransportOptions())
    await transport.connect()
    await transport.declare([PAID])
    yield transport
    await transport.close()


async def bury(transport: SqliteTransport, message_id: str) -> str:
    """Make a dead letter of a message of this id; returns its id as a dead letter."""
    await transport.publish([Envelope({"id": message_id, "type": "payments.paid"}, b"")])
    async with transport.consume(PAID, prefetch=1) as consumer:
        [delivery] = await asyncio.wait_for(consumer.receive(1), 5)
        await consumer.settle([(delivery, Dead("no"))])
    [letter] = await transport.dead_letters(PAID, limit=9)
    return letter.id


async def test_a_dead_letter_named_twice_is_replayed_once(transport: SqliteTransport) -> None:
    letter = await bury(transport, "1")
    assert await transport.replay(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (1, 0)


async def test_a_dead_letter_named_twice_is_discarded_once(transport: SqliteTransport) -> None:
    letter = await bury(transport, "1")
    assert await transport.discard(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (0, 0)


@pytest.mark.parametrize(
    ("url", "path"), [("sqlite:///a/b.db", "a/b.db"), ("sqlite:////a/b.db", "/a/b.db")]
)
def test_a_url_names_a_path_from_here_or_an_absolute_one(url: str, path: str) -> None:
    assert path_of(url) == Path(path)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:a.db"])
def test_a_url_without_file_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="names no file: write sqlite:///"):
        path_of(url)
