"""What only the memory transport promises, with a manual clock.

See tests/conformance for what all transports promise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import pytest

from eventmesh.errors import Unreachable
from eventmesh.testing.clock import ManualClock, settle_loop
from eventmesh.transports.base import Delivery, Subscription, SubscriptionStats, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.wire.envelope import Envelope

T = TypeVar("T")

PAID = Subscription("orders.note_payment", ("payments.paid",))


def envelopes(*ids: str, name: str = "payments.paid") -> list[Envelope]:
    return [Envelope({"id": message_id, "type": name}, b"") for message_id in ids]


def ids(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.envelope.id for delivery in deliveries]


async def soon(result: Awaitable[T]) -> T:
    """The result; TimeoutError instead of waiting forever."""
    return await asyncio.wait_for(result, 60)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def transport(clock: ManualClock) -> MemoryTransport:
    transport = MemoryTransport(clock)
    await transport.declare([PAID])
    return transport


async def test_a_retry_is_delivered_exactly_after_its_delay(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    await publish_or_raise(transport, envelopes("1"))
    async with transport.consume(PAID, prefetch=5) as consumer:
        [first] = await soon(consumer.receive(5))
        await consumer.settle([(first, RetryAfter(60))])
        again = asyncio.create_task(consumer.receive(5))
        await clock.advance(59.999)
        assert not again.done()
        await clock.advance(0.001)
        [second] = await soon(again)
    assert (second.envelope.id, second.attempt, second.deliveries) == ("1", 2, 1)


async def test_a_delayed_message_does_not_block_others(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    await publish_or_raise(transport, envelopes("1", "2"))
    async with transport.consume(PAID, prefetch=5) as consumer:
        first, second = await soon(consumer.receive(5))
        await consumer.settle([(first, RetryAfter(60)), (second, DONE)])
        waiting = asyncio.create_task(consumer.receive(5))
        await settle_loop()
        await publish_or_raise(transport, envelopes("3"))
        assert ids(await soon(waiting)) == ["3"]


async def test_delayed_messages_are_delivered_in_order_of_their_due_times(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    await publish_or_raise(transport, envelopes("1", "2", "3"))
    async with transport.consume(PAID, prefetch=5) as consumer:
        delays = dict(zip(await soon(consumer.receive(5)), (3.0, 1.0, 2.0), strict=True))
        await consumer.settle([(d, RetryAfter(delay)) for d, delay in delays.items()])
        await clock.advance(10)
        assert ids(await soon(consumer.receive(5))) == ["2", "3", "1"]


async def test_a_consumer_never_holds_more_than_its_prefetch(transport: MemoryTransport) -> None:
    await publish_or_raise(transport, envelopes("1", "2", "3"))
    async with transport.consume(PAID, prefetch=2) as consumer:
        held = list(await soon(consumer.receive(5)))
        assert ids(held) == ["1", "2"]
        more = asyncio.create_task(consumer.receive(5))
        await settle_loop()
        assert not more.done()
        await consumer.settle([(held[0], DONE)])
        assert ids(await soon(more)) == ["3"]


async def test_unsettled_messages_go_to_other_consumers_when_a_consumer_closes(
    transport: MemoryTransport,
) -> None:
    await publish_or_raise(transport, envelopes("1", "2"))
    async with transport.consume(PAID, prefetch=5) as other:
        async with transport.consume(PAID, prefetch=5) as consumer:
            first, _ = await soon(consumer.receive(5))
            waiting = asyncio.create_task(other.receive(5))
            await settle_loop()
            await consumer.settle([(first, DONE)])
        [second] = await soon(waiting)
    assert (second.envelope.id, second.attempt, second.deliveries) == ("2", 1, 2)


async def test_settling_a_delivery_that_was_requeued_has_no_effect(
    transport: MemoryTransport,
) -> None:
    await publish_or_raise(transport, envelopes("1"))
    async with transport.consume(PAID, prefetch=5) as consumer:
        [delivery] = await soon(consumer.receive(5))
    await consumer.settle([(delivery, DONE)])
    assert (await transport.stats(PAID)).ready == 1


async def test_settling_a_delivery_twice_has_no_further_effect(transport: MemoryTransport) -> None:
    await publish_or_raise(transport, envelopes("1"))
    async with transport.consume(PAID, prefetch=5) as consumer:
        [delivery] = await soon(consumer.receive(5))
        await consumer.settle([(delivery, RetryAfter(0)), (delivery, RetryAfter(0))])
        assert (await transport.stats(PAID)).ready == 1


async def test_cancelling_a_waiting_receive_loses_no_message(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    async with transport.consume(PAID, prefetch=5) as consumer:
        waiting = asyncio.create_task(consumer.receive(5))
        await settle_loop()
        waiting.cancel()
        await settle_loop()
        await publish_or_raise(transport, envelopes("1"))
        assert ids(await soon(consumer.receive(5))) == ["1"]


async def test_an_unrouted_message_goes_to_the_first_subscription_declared_for_it(
    transport: MemoryTransport,
) -> None:
    await publish_or_raise(transport, envelopes("1", "2", name="payments.refunded"))
    late = Subscription("orders.note_refund", ("payments.refunded",))
    later = Subscription("shipping.note_refund", ("payments.refunded",))
    await transport.declare([late])
    await transport.declare([later])
    assert (await transport.stats(late)).ready == 2
    assert (await transport.stats(later)).ready == 0


async def test_declaring_a_subscription_twice_changes_nothing(transport: MemoryTransport) -> None:
    await publish_or_raise(transport, envelopes("1"))
    await transport.declare([PAID])
    assert (await transport.stats(PAID)).ready == 1


async def test_messages_survive_a_reconnect(transport: MemoryTransport) -> None:
    await publish_or_raise(transport, envelopes("1"))
    await transport.close()
    await transport.connect()
    assert (await transport.stats(PAID)).ready == 1


async def test_stats_count_each_state_and_have_the_age_of_the_oldest_message(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    await publish_or_raise(transport, envelopes("late", "held", "dead"))
    async with transport.consume(PAID, prefetch=3) as consumer:
        late, _, dead = await soon(consumer.receive(3))
        await consumer.settle([(late, RetryAfter(99)), (dead, Dead("no"))])
        await publish_or_raise(transport, envelopes("old"))
        await clock.advance(5)
        await publish_or_raise(transport, envelopes("new"))
        assert await transport.stats(PAID) == SubscriptionStats(
            ready=2, delayed=1, in_flight=1, dead=1, oldest_age=5.0, consumers=1
        )


async def test_stats_of_an_undeclared_subscription_are_empty_and_say_so(
    transport: MemoryTransport,
) -> None:
    assert await transport.stats(Subscription("x", ())) == SubscriptionStats(
        0, 0, 0, 0, None, consumers=0, declared=False
    )


async def test_a_dead_letter_has_its_envelope_reason_error_attempts_and_time(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    [envelope] = envelopes("1")
    await publish_or_raise(transport, [envelope])
    async with transport.consume(PAID, prefetch=5) as consumer:
        [delivery] = await soon(consumer.receive(5))
        await consumer.settle([(delivery, RetryAfter(0))])
        [delivery] = await soon(consumer.receive(5))
        await clock.advance(7)
        await consumer.settle([(delivery, Dead("no luck", "Traceback"))])
    [letter] = await transport.dead_letters(PAID, limit=5)
    assert letter.envelope is envelope
    assert (letter.subscription, letter.reason, letter.error, letter.attempts) == (
        PAID.name,
        "no luck",
        "Traceback",
        2,
    )
    assert letter.died_at == clock.now()


async def dead_letter(transport: MemoryTransport, *message_ids: str) -> list[str]:
    """Dead-letter these messages; returns the ids of the dead letters."""
    await publish_or_raise(transport, envelopes(*message_ids))
    async with transport.consume(PAID, prefetch=9) as consumer:
        await consumer.settle([(each, Dead("no")) for each in await soon(consumer.receive(9))])
    return [letter.id for letter in await transport.dead_letters(PAID, limit=9)]


async def test_a_replayed_dead_letter_starts_with_attempt_1(transport: MemoryTransport) -> None:
    [letter] = await dead_letter(transport, "1")
    assert await transport.replay(PAID, ["unknown", letter]) == [letter]
    async with transport.consume(PAID, prefetch=5) as consumer:
        [delivery] = await soon(consumer.receive(5))
    assert (delivery.attempt, delivery.deliveries) == (1, 1)
    assert (await transport.stats(PAID)).dead == 0


async def test_a_dead_letter_given_twice_is_replayed_once(transport: MemoryTransport) -> None:
    [letter] = await dead_letter(transport, "1")
    assert await transport.replay(PAID, [letter, letter]) == [letter]
    stats = await transport.stats(PAID)
    assert (stats.ready, stats.dead) == (1, 0)


async def test_discarding_a_dead_letter_keeps_the_others(
    transport: MemoryTransport,
) -> None:
    first, second = await dead_letter(transport, "1", "2")
    assert await transport.discard(PAID, ["unknown", first]) == [first]
    assert await transport.discard(PAID, [first]) == []
    assert [letter.id for letter in await transport.dead_letters(PAID, limit=9)] == [second]


async def test_the_oldest_dead_letters_come_first(transport: MemoryTransport) -> None:
    first, second, _ = await dead_letter(transport, "1", "2", "3")
    letters = await transport.dead_letters(PAID, limit=2)
    assert [letter.id for letter in letters] == [first, second]


async def test_closing_one_connection_does_not_affect_another_to_the_same_broker(
    transport: MemoryTransport, clock: ManualClock
) -> None:
    other = MemoryTransport(clock, transport.broker)
    await publish_or_raise(transport, envelopes("1", "2"))
    async with (
        other.consume(PAID, prefetch=1) as theirs,
        transport.consume(PAID, prefetch=1) as ours,
    ):
        await soon(theirs.receive(1))
        assert ids(await soon(ours.receive(1))) == ["2"]
        waiting = asyncio.create_task(ours.receive(1))
        await settle_loop()
        await other.close()
        with pytest.raises(Unreachable, match="open a new consumer"):
            await theirs.receive(1)
        await settle_loop()
        assert not waiting.done()  # its prefetch is used up
        waiting.cancel()
    with pytest.raises(Unreachable, match="connect first"):
        await publish_or_raise(other, envelopes("3"))
    assert (await transport.stats(PAID)).ready == 2


async def test_a_stopped_broker_is_unreachable_and_keeps_its_messages(
    transport: MemoryTransport,
) -> None:
    await publish_or_raise(transport, envelopes("1", "2"))
    async with transport.consume(PAID, prefetch=1) as consumer:
        [held] = await soon(consumer.receive(1))
        transport.broker.stop()
        with pytest.raises(Unreachable, match="open a new consumer"):
            await consumer.settle([(held, DONE)])
        for call in (
            publish_or_raise(transport, envelopes("3")),
            transport.stats(PAID),
            transport.connect(),
        ):
            with pytest.raises(Unreachable, match="start it"):
                await call
        transport.broker.start()
    async with transport.consume(PAID, prefetch=5) as consumer:
        assert ids(await soon(consumer.receive(5))) == ["1", "2"]


async def test_a_broker_that_lost_its_data_works_again_after_declaring(
    transport: MemoryTransport,
) -> None:
    await publish_or_raise(transport, envelopes("1"))
    async with transport.consume(PAID, prefetch=5) as consumer:
        await soon(consumer.receive(5))
        waiting = asyncio.create_task(consumer.receive(5))
        await settle_loop()
        transport.broker.lose_data()
        with pytest.raises(Unreachable, match="open a new consumer"):
            await soon(waiting)
    assert (await transport.stats(PAID)).ready == 0
    await publish_or_raise(transport, envelopes("2"))
    await transport.declare([PAID])
    async with transport.consume(PAID, prefetch=5) as consumer:
        assert ids(await soon(consumer.receive(5))) == ["2"]
