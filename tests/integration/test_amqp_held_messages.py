"""Acknowledged messages are not delivered again, and messages given back keep their order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from eventmesh.clock import SystemClock
from eventmesh.testing.servers import WAYS
from eventmesh.transports.base import (
    DeadLetter,
    Delivery,
    Subscription,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead
from eventmesh.transports.rabbitmq.transport import AmqpTransport
from eventmesh.wire.envelope import Envelope
from tests.integration.test_unrouted import messages

if TYPE_CHECKING:
    from tests.conftest import Servers

COUNT = 300
FAILING = Subscription("audit.failing", ("bank.closed",))


@pytest.fixture(params=WAYS)
async def transport(
    request: pytest.FixtureRequest, servers: Servers
) -> AsyncIterator[AmqpTransport]:
    """A transport on each generation of RabbitMQ that is available."""
    clock = SystemClock()
    server = servers.had_by("rabbitmq", request.param)
    options = TransportOptions(prefix=f"held-{clock.new_id()}")
    transport = AmqpTransport(server.url, clock, options)
    await transport.connect()
    yield transport
    await transport.close()


async def dead_letter_all(transport: AmqpTransport, count: int = COUNT) -> list[Envelope]:
    """Dead-letter every message that waits for the subscription, at least so many; returns
    these."""
    got: list[Envelope] = []
    waiting = 0
    while waiting < count:  # messages given back are counted a moment later
        waiting = (await transport.stats(FAILING)).ready
    async with transport.consume(FAILING, prefetch=COUNT) as consumer:
        while len(got) < waiting:
            deliveries = await consumer.receive(COUNT)
            await consumer.settle([(delivery, Dead("no")) for delivery in deliveries])
            got += [delivery.envelope for delivery in deliveries]
    return got


async def letters(transport: AmqpTransport) -> list[DeadLetter]:
    return list(await transport.dead_letters(FAILING, limit=COUNT))


def ids(letters: list[DeadLetter]) -> list[str]:
    return [letter.envelope.id for letter in letters]


async def test_any_selection_of_many_dead_letters_is_discarded_or_replayed_once(
    transport: AmqpTransport,
) -> None:
    await transport.declare([FAILING])
    await publish_or_raise(transport, messages(COUNT))
    sent = [envelope.id for envelope in await dead_letter_all(transport)]
    assert ids(await letters(transport)) == sent
    found = await letters(transport)
    assert ids(found) == sent, "listing changed the dead letters"
    assert len(await transport.discard(FAILING, [each.id for each in found[::2]])) == COUNT / 2
    found = await letters(transport)
    assert ids(found) == sent[1::2]
    chosen = found[::2]
    assert len(await transport.replay(FAILING, [each.id for each in chosen])) == len(chosen)
    assert ids(await letters(transport)) == ids(found[1::2])
    replayed = await dead_letter_all(transport, len(chosen))
    assert [envelope.id for envelope in replayed] == ids(chosen)


async def test_a_message_acknowledged_just_before_the_consumer_stops_is_not_redelivered(
    transport: AmqpTransport,
) -> None:
    await transport.declare([FAILING])
    await publish_or_raise(transport, messages(COUNT))
    deliveries: list[Delivery] = []
    async with transport.consume(FAILING, prefetch=COUNT) as consumer:
        while len(deliveries) < COUNT:
            deliveries += await consumer.receive(COUNT)
        await consumer.settle([(delivery, DONE) for delivery in deliveries[::2]])
    left = deliveries[1::2]
    assert [envelope.id for envelope in await dead_letter_all(transport, len(left))] == [
        delivery.envelope.id for delivery in left
    ]


async def test_dead_letters_keep_their_order_however_many_are_listed(
    transport: AmqpTransport,
) -> None:
    await transport.declare([FAILING])
    await publish_or_raise(transport, messages(COUNT))
    sent = [envelope.id for envelope in await dead_letter_all(transport)]
    for limit in (100, 100, 50, 100, COUNT, 1, 100, COUNT):
        found = await transport.dead_letters(FAILING, limit=limit)
        assert [letter.envelope.id for letter in found] == sent[:limit]


async def test_unrouted_messages_keep_their_order_when_they_are_counted_and_listed(
    transport: AmqpTransport,
) -> None:
    sent = messages(COUNT)
    await publish_or_raise(transport, sent)
    [name] = FAILING.messages
    for _ in range(2):
        await transport.census([], [name])
        [found] = await transport.unrouted([name], thorough=True)
        assert (found.message, found.number) == (name, COUNT)
    await transport.declare([FAILING])
    got = await dead_letter_all(transport)
    assert [envelope.id for envelope in got] == [envelope.id for envelope in sent]
