"""Every message reaches every subscription, in order, whenever the subscription was declared."""

from __future__ import annotations

import asyncio

from eventmesh.testing.conformance.observing import (
    drain,
    eventually,
    expect,
    in_order,
    receive,
    running,
    same_ids,
)
from eventmesh.testing.conformance.rig import FOR_EVER, Rig
from eventmesh.transports.base import Consumer, Delivery, publish_or_raise
from eventmesh.transports.outcome import DONE
from eventmesh.wire.envelope import Envelope


async def round_trip(rig: Rig) -> None:
    """An envelope arrives as it was published: unknown attributes, any Unicode, any bytes."""
    sent = Envelope(
        {**rig.envelopes(1)[0].attributes, "subject": "Łódź \u2028 日本", "myextension": "ü"},
        bytes(range(256)),
    )
    subscription = rig.subscription("reader")
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, [sent])
        async with transport.consume(subscription, prefetch=10) as consumer:
            [delivery] = await receive(rig, consumer, 1)
            expect(dict(delivery.envelope.attributes) == dict(sent.attributes), delivery)
            expect(delivery.envelope.data == sent.data, delivery)
            expect((delivery.attempt, delivery.deliveries) == (1, 1), delivery)
            await consumer.settle([(delivery, DONE)])


async def fan_out(rig: Rig) -> None:
    """Every subscription gets every message with one of its names, and no other."""
    subscriptions = [rig.subscription("one"), rig.subscription("two")]
    both = rig.subscription("three", "happened", "ended")
    sent, other = rig.envelopes(5), rig.envelopes(3, "ended")
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([*subscriptions, both])
        await publish_or_raise(transport, [*sent, *other])
        for subscription in subscriptions:
            same_ids(await drain(rig, transport, subscription, 5), sent)
        same_ids(await drain(rig, transport, both, 8), [*sent, *other])


async def order_for_one_consumer(rig: Rig) -> None:
    """A single consumer gets messages in the order of publishing, across batches."""
    subscription = rig.subscription("ordered")
    sent = rig.envelopes(60)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        for start in range(0, 60, 20):
            await publish_or_raise(transport, sent[start : start + 20])
        got = await drain(rig, transport, subscription, 60)
        expect([d.envelope.id for d in got] == [e.id for e in sent], "another order")


async def competing_consumers(rig: Rig) -> None:
    """Consumers of one subscription share its messages; none goes to two of them."""
    subscription = rig.subscription("shared")
    sent = rig.envelopes(40)
    async with rig.open(FOR_EVER) as first, rig.open(FOR_EVER) as second:
        await first.declare([subscription])
        async with (
            first.consume(subscription, prefetch=5) as one,
            second.consume(subscription, prefetch=5) as two,
        ):
            await publish_or_raise(first, sent)
            shares: list[list[Delivery]] = [[], []]

            async def take(consumer: Consumer, share: list[Delivery]) -> None:
                while True:
                    batch = await consumer.receive(5)
                    share.extend(batch)
                    # It gets no more than its prefetch before the other has got something.
                    await eventually(rig, lambda: all(shares), "one of two got all")
                    await consumer.settle([(delivery, DONE) for delivery in batch])

            async with running(take(one, shares[0]), take(two, shares[1])):
                await eventually(
                    rig, lambda: len(shares[0]) + len(shares[1]) >= 40, "all 40 arrived"
                )
                await asyncio.sleep(0.2)  # for what should not come: a second copy
        same_ids([*shares[0], *shares[1]], sent)


async def backlog_before_the_first_consumer(rig: Rig) -> None:
    """Messages published before anybody consumed are delivered, in order."""
    subscription = rig.subscription("late")
    sent = rig.envelopes(30)
    async with rig.open(FOR_EVER) as publisher:
        await publisher.declare([subscription])
        await publish_or_raise(publisher, sent)
    async with rig.open(FOR_EVER) as transport:
        got = await drain(rig, transport, subscription, 30)
        expect([d.envelope.id for d in got] == [e.id for e in sent], "another order")


async def backlog_before_the_first_subscription(rig: Rig) -> None:
    """Messages published before anybody subscribed go to the first subscription, also if others are
    declared at the same time."""
    sent, other = rig.envelopes(50), rig.envelopes(50, "ended")
    founder, neighbour = rig.subscription("founder"), rig.subscription("neighbour", "ended")
    async with rig.open(FOR_EVER) as first, rig.open(FOR_EVER) as second:
        await publish_or_raise(first, [*sent, *other])
        await asyncio.gather(first.declare([founder]), second.declare([neighbour]))
        same_ids(await drain(rig, first, founder, 50), sent)
        same_ids(await drain(rig, second, neighbour, 50), other)


async def order_within_a_key_survives_a_stop(rig: Rig) -> None:
    """Deliveries that a consumer returns on leaving come before later messages, so that the next
    consumer gets the messages of each key in order, even in small batches."""
    subscription = rig.subscription("successive")
    keys = [rig.envelopes(20, key=key) for key in ("a", "b", "c")]
    sent = [envelope for each in zip(*keys, strict=True) for envelope in each]
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        for start in range(0, 45, 15):
            await publish_or_raise(transport, sent[start : start + 15])
        async with transport.consume(subscription, prefetch=20) as consumer:
            got = await receive(rig, consumer, 12)
            await consumer.settle([(delivery, DONE) for delivery in got[:4]])
        await publish_or_raise(transport, sent[45:])
        rest = await drain(rig, transport, subscription, 56, prefetch=5)
        in_order([*got[:4], *rest], sent)
