"""`eventmesh dlq replay --all` goes through all dead letters, a bounded number at a time."""

from __future__ import annotations

import pytest

from eventmesh import Event, Settings
from eventmesh.clock import SystemClock
from eventmesh.operations import dead_letters
from eventmesh.operations.dead_letters import choose_letters
from eventmesh.operations.reach import Reach
from eventmesh.transports.base import Subscription, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import seal

SOLD = Subscription("ledger.book", ("shop.sold",))


class Sold(Event, name="shop.sold", version=1):
    number: int


def reach_of(transport: MemoryTransport) -> Reach:
    return Reach((), Settings(), SystemClock(), transport)


async def die(transport: MemoryTransport, number: int) -> None:
    async with transport.consume(SOLD, prefetch=100) as consumer:
        left = number
        while left:
            deliveries = await consumer.receive(100)
            await consumer.settle([(each, Dead("no")) for each in deliveries])
            left -= len(deliveries)


async def test_what_is_replayed_and_dies_again_is_not_replayed_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dead_letters, "AT_ONCE", 2)
    transport = MemoryTransport(SystemClock())
    await transport.connect()
    await transport.declare([SOLD])
    sent = [seal(Sold(number=number), source="shop", clock=SystemClock()) for number in range(5)]
    await publish_or_raise(transport, sent)
    await die(transport, 5)
    replayed: list[list[str]] = []
    async for letters in choose_letters(reach_of(transport), SOLD, None):
        replayed.append([letter.envelope.id for letter in letters])
        await transport.replay(SOLD, [letter.id for letter in letters])
        await die(transport, len(letters))
    ids = [each.id for each in sent]
    assert replayed == [ids[:2], ids[2:4], ids[4:]]
    assert (await transport.stats(SOLD)).dead == 5


async def test_letters_that_cannot_be_replayed_do_not_keep_the_command_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dead_letters, "AT_ONCE", 2)
    transport = MemoryTransport(SystemClock())
    await transport.connect()
    await transport.declare([SOLD])
    sent = [seal(Sold(number=number), source="shop", clock=SystemClock()) for number in range(5)]
    await publish_or_raise(transport, sent)
    await die(transport, 5)
    batches = [letters async for letters in choose_letters(reach_of(transport), SOLD, None)]
    assert [len(letters) for letters in batches] == [2]
