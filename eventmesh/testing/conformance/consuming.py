"""Prefetch, leaving, dying: to whom deliveries belong."""

from __future__ import annotations

import asyncio

from eventmesh.testing.conformance.observing import (
    die_while_holding,
    drain,
    either,
    expect,
    expect_silence,
    receive,
    same_ids,
)
from eventmesh.testing.conformance.rig import FOR_EVER, NotApplicable, Rig
from eventmesh.transports.base import Delivery, publish_or_raise
from eventmesh.transports.outcome import DONE, RetryAfter


async def prefetch_limits_unsettled_deliveries(rig: Rig) -> None:
    """At most `prefetch` deliveries are unsettled; other consumers can get the rest."""
    subscription = rig.subscription("bounded")
    sent = rig.envelopes(10)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=4) as consumer:
            held = await receive(rig, consumer, 4)
            await expect_silence(consumer, 0.2)
            async with transport.consume(subscription, prefetch=10) as other:
                rest = await receive(rig, other, 6)
                await other.settle([(delivery, DONE) for delivery in rest])
            await consumer.settle([(delivery, DONE) for delivery in held])
        same_ids([*held, *rest], sent)


async def prefetch_spans_all_messages_of_a_subscription(rig: Rig) -> None:
    """A subscription to several messages has one limit for all of them together."""
    subscription = rig.subscription("wide", "happened", "ended", "failed")
    names = ("happened", "ended", "failed")
    sent = [envelope for name in names for envelope in rig.envelopes(4, name)]
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=5) as consumer:
            held = await receive(rig, consumer, 5)
            await expect_silence(consumer, 0.2)
            await consumer.settle([(delivery, DONE) for delivery in held])
        same_ids([*held, *await drain(rig, transport, subscription, 7)], sent)


async def unsettled_deliveries_return_on_leaving(rig: Rig) -> None:
    """When a consumer leaves, its unsettled deliveries return to the queue at once, not after the
    visibility timeout."""
    subscription = rig.subscription("returned")
    sent = rig.envelopes(8)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await receive(rig, consumer, 8)
            await consumer.settle([(got[0], DONE)])
        same_ids(await drain(rig, transport, subscription, 7), sent[1:])


async def receive_can_be_cancelled(rig: Rig) -> None:
    """Cancelling `receive` at any moment loses no message."""
    subscription = rig.subscription("cancelled")
    sent = rig.envelopes(20)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        got: list[Delivery] = []
        async with transport.consume(subscription, prefetch=10) as consumer:
            for number, envelope in enumerate(sent):
                receiving = asyncio.ensure_future(consumer.receive(10))
                await asyncio.sleep(0)
                await publish_or_raise(transport, [envelope])
                await asyncio.sleep(0.0005 * number)
                receiving.cancel()
                [result] = await asyncio.gather(receiving, return_exceptions=True)
                if not isinstance(result, BaseException):
                    got.extend(result)
                    await consumer.settle([(delivery, DONE) for delivery in result])
        got.extend(await drain(rig, transport, subscription, 20 - len(got)))
        same_ids(got, sent)


async def deliveries_of_a_killed_consumer_come_again(rig: Rig) -> None:
    """Deliveries of a process that is killed by SIGKILL go to another consumer, with a higher
    count."""
    subscription = rig.subscription("bereaved")
    sent = rig.envelopes(6)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        await die_while_holding(rig, transport, subscription, 4)
        got = await drain(rig, transport, subscription, 6)
        same_ids(got, sent)
        again = [delivery for delivery in got if delivery.deliveries > 1]
        expect(len(again) == 4, f"4 redelivered, not {len(again)}")


async def a_slow_consumer_keeps_its_deliveries(rig: Rig) -> None:
    """A handler may take longer than the visibility timeout, as long as its process is alive."""
    subscription = rig.subscription("slow")
    sent = rig.envelopes(2)
    async with rig.open() as first, rig.open() as second:
        await first.declare([subscription])
        await publish_or_raise(first, sent)
        async with (
            first.consume(subscription, prefetch=2) as slow,
            second.consume(subscription, prefetch=2) as idle,
        ):
            held = [*await either(rig, slow, idle, 2)]
            await expect_silence(idle, rig.visibility_timeout * 2)
            await slow.settle([(delivery, DONE) for delivery in held])


async def prefetched_messages_do_not_count_as_delivered(rig: Rig) -> None:
    """A message that a consumer fetched but had not returned from `receive` when it left comes
    with the same `deliveries` as before: only deliveries that a worker may have started to
    handle count."""
    subscription = rig.subscription("untouched")
    sent = rig.envelopes(8)
    begun: set[str] = set()
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        if not transport.exact_deliveries:
            raise NotApplicable("it says of itself that it counts what was not handed out")
        for _ in range(2):
            async with transport.consume(subscription, prefetch=8) as consumer:
                [delivery] = await receive(rig, consumer, 1)
                begun.add(delivery.envelope.id)
                await asyncio.sleep(0.1)  # in which the others may be fetched
        got = await drain(rig, transport, subscription, 8)
        same_ids(got, sent)
        counted = {each.envelope.id for each in got if each.deliveries > 1}
        expect(counted <= begun, f"{len(begun)} handed out, {len(counted)} counted: {got}")


async def deliveries_to_dead_workers_are_counted(rig: Rig) -> None:
    """After two workers died with a message, `deliveries` is 3, whatever happened to the messages
    beside it. A retry that was asked for starts at 1 again."""
    subscription = rig.subscription("poisoned")
    [poison] = rig.envelopes(1)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, [poison])
        for _ in range(2):
            await die_while_holding(rig, transport, subscription, 1)
        async with transport.consume(subscription, prefetch=10) as consumer:
            [third] = await receive(rig, consumer, 1)
            expect((third.attempt, third.deliveries) == (1, 3), third)
            await consumer.settle([(third, RetryAfter(0.0))])
            [retried] = await receive(rig, consumer, 1)
            expect((retried.attempt, retried.deliveries) == (2, 1), retried)
            await consumer.settle([(retried, DONE)])
