"""Batches of any size, from many tasks at once, and rejected messages."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace

from eventmesh.testing.conformance.observing import drain, expect, in_order, receive, same_ids
from eventmesh.testing.conformance.rig import FOR_EVER, Rig, needed
from eventmesh.transports.base import Consumer, Delivery, publish_or_raise
from eventmesh.transports.outcome import DONE, RetryAfter
from eventmesh.wire.envelope import Envelope

MIB = 1024 * 1024


async def batches_of_any_size(rig: Rig) -> None:
    """A batch may be empty, have a thousand messages, or one message of a mebibyte."""
    subscription = rig.subscription("sizes")
    [first, *thousand] = rig.envelopes(1001)
    big = replace(first, data=bytes(range(256)) * (MIB // 256))
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, [])
        await publish_or_raise(transport, [big])
        await publish_or_raise(transport, thousand)
        got = await drain(rig, transport, subscription, 1001)
        in_order(got, [big, *thousand])
        expect(got[0].envelope == big, "the big one came otherwise than it was sent")


async def a_rejected_message_leaves_the_rest(rig: Rig) -> None:
    """The result names a message that the broker rejects; the others of its batch are published,
    and the transport goes on."""
    subscription = rig.subscription("refusing")
    before, plain, odd, behind, after = rig.envelopes(5)
    odd = replace(odd, attributes={**odd.attributes, "odd": "o" * (MIB // 2)})
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, [before])
        expected = {each.id: each for each in (before, plain, odd, behind, after)}
        result = await transport.publish([plain, odd, behind])
        expect(result.error is None, result)
        expect(result.rejected.keys() <= {plain.id, odd.id, behind.id}, result)
        for rejected in result.rejected:
            del expected[rejected]
        await publish_or_raise(transport, [after])
        same_ids(await drain(rig, transport, subscription, len(expected)), expected.values())


async def nothing_overtakes_a_rejected_message(rig: Rig) -> None:
    """The result names the messages that the broker rejects, and no others. With `atomic_batches`,
    it also names later messages of the same key, which are not stored either. Once the broker
    accepts them, they can be published."""
    refuse = needed(rig.refuse, "refuse")
    taking, refusing = rig.subscription("taking"), rig.subscription("refusing", "refused")
    ahead, behind = rig.envelopes(2)
    [odd] = rig.envelopes(1, "refused")
    others = rig.envelopes(2, key="other")
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([taking])
        async with refuse(odd.name):
            result = await transport.publish([ahead, others[0], odd, behind, others[1]])
        overtaking = [behind] if transport.atomic_batches else []
        expect(result.error is None, result)
        expect(result.rejected.keys() == {each.id for each in (odd, *overtaking)}, result)
        expected = [ahead, *others] if overtaking else [ahead, behind, *others]
        in_order(await drain(rig, transport, taking, len(expected)), expected)
        await transport.declare([refusing])
        await publish_or_raise(transport, [odd, *overtaking])
        same_ids(await drain(rig, transport, refusing, 1), [odd])
        same_ids(await drain(rig, transport, taking, len(overtaking)), overtaking)


async def many_tasks_share_a_transport(rig: Rig) -> None:
    """Tasks may publish concurrently, each keeping its order, and settle deliveries of one consumer
    concurrently."""
    subscription = rig.subscription("busy")
    sent = {key: rig.envelopes(40, key=key) for key in "abcde"}
    everything = [envelope for each in sent.values() for envelope in each]
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])

        async def publish(envelopes: list[Envelope]) -> None:
            for start in range(0, 40, 8):
                await publish_or_raise(transport, envelopes[start : start + 8])

        async with (
            transport.consume(subscription, prefetch=60) as consumer,
            asyncio.TaskGroup() as tasks,
        ):
            for envelopes in sent.values():
                tasks.create_task(publish(envelopes))
            got = await _settled_by_many(rig, consumer, len(everything), tasks)
    in_order(got[1], everything)
    same_ids(got[2], [each for each in everything if _is_retried(each)])


async def _settled_by_many(
    rig: Rig, consumer: Consumer, count: int, tasks: asyncio.TaskGroup
) -> dict[int, list[Delivery]]:
    """Deliveries by attempt, each settled by a task of its own; every fifth message is retried
    once."""
    got: dict[int, list[Delivery]] = defaultdict(list)
    missing = count
    while missing:
        [delivery] = await receive(rig, consumer, 1)
        got[delivery.attempt].append(delivery)
        again = delivery.attempt == 1 and _is_retried(delivery.envelope)
        tasks.create_task(consumer.settle([(delivery, RetryAfter(0.0) if again else DONE)]))
        missing -= not again
    return got


def _is_retried(envelope: Envelope) -> bool:
    return envelope.data.endswith((b"0}", b"5}"))
