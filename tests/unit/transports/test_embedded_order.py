"""Order within a key where a dead letter of before holds no key and a later one does; on the two
transports that keep the places of messages. The other ones hand out nothing of a key that is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from eventmesh.testing.clock import ManualClock
from eventmesh.transports.base import Order, Subscription, Transport, TransportOptions
from eventmesh.transports.base import publish_or_raise as publish
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.transports.sqlite.transport import SqliteTransport
from eventmesh.wire.envelope import Envelope

CONTINUE = Subscription("orders.note_payment", ("payments.paid",), order=Order())
HOLD = replace(CONTINUE, order=Order(after_dead="hold"))
SENT = [
    Envelope({"id": each, "type": "payments.paid", "partitionkey": "ada"}, b"") for each in "012"
]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def transport(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Transport]:
    made: Transport = MemoryTransport(clock)
    if request.param == "sqlite":
        made = SqliteTransport(f"sqlite:///{tmp_path}/broker.db", clock, TransportOptions())
    await made.connect()
    yield made
    await made.close()


async def settle_next(transport: Transport, subscription: Subscription, outcome: Outcome) -> str:
    """Receive a message and settle it so; returns its id."""
    async with transport.consume(subscription, prefetch=1) as consumer:
        [delivery] = await asyncio.wait_for(consumer.receive(1), 60)
        await consumer.settle([(delivery, outcome)])
    return delivery.envelope.id


@pytest.mark.parametrize("after", [HOLD, CONTINUE], ids=["discarded", "holding no more"])
async def test_a_released_key_waits_for_an_earlier_message_that_is_to_be_retried(
    transport: Transport, clock: ManualClock, after: Subscription
) -> None:
    for subscription, sent in ((CONTINUE, SENT[0]), (HOLD, SENT[1])):
        await transport.declare([subscription])
        await publish(transport, [sent])
        assert await settle_next(transport, subscription, Dead("no")) == sent.id
    await publish(transport, SENT[2:])
    former, holder = (letter.id for letter in await transport.dead_letters(HOLD, limit=9))
    await transport.replay(HOLD, [former])
    assert await settle_next(transport, HOLD, RetryAfter(60)) == "0"
    if after is HOLD:
        await transport.discard(HOLD, [holder])
    await transport.declare([after])
    assert (await transport.stats(HOLD)).ready == 0
    await clock.advance(60)
    assert [await settle_next(transport, after, DONE) for _ in range(2)] == ["0", "2"]
