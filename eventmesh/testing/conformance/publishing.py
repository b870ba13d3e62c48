"""Batches of any size, by many tasks at once, and refusals."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace

from eventmesh.errors import PublishError, UsageError
from eventmesh.testing.conformance.observing import drain, expect, in_order, receive, same_ids
from eventmesh.testing.conformance.rig import Rig, needed
from eventmesh.transports.base import Consumer, Delivery, Transport
from eventmesh.transports.outcome import DONE, RetryAfter
from eventmesh.wire.envelope import Envelope

MIB = 1024 * 1024


async def batches_of_any_size(rig: Rig) -> None:
    """A batch may be empty, or have a thousand messages, or one of a mebibyte."""
    subscription = rig.subscription("sizes")
    [first, *thousand] = rig.envelopes(1001)
    big = replace(first, data=bytes(range(256)) * (MIB // 256))
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish([])
        await transport.publish([big])
        await transport.publish(thousand)
        got = await drain(rig, transport, subscription, 1001)
        in_order(got, [big, *thousand])
        expect(got[0].envelope == big, "the big one came otherwise than it was sent")


async def a_refusal_leaves_the_rest(rig: Rig) -> None:
    """A message that the broker cannot take is named by PublishError, or nothing of its batch is
    published and UsageError says why; and the transport goes on."""
    subscription = rig.subscription("refusing")
    before, plain, odd, behind, after = rig.envelopes(5)
    odd = replace(odd, attributes={**odd.attributes, "odd": "o" * (MIB // 2)})
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish([before])
        expected = {each.id: each for each in (before, plain, odd, behind, after)}
        try:
            await transport.publish([plain, odd, behind])
        except PublishError as error:
            expect(error.refused.keys() <= {plain.id, odd.id, behind.id}, error)
            for refused in error.refused:
                del expected[refused]
        except UsageError:
            for each in (plain, odd, behind):
                del expected[each.id]
        await transport.publish([after])
        same_ids(await drain(rig, transport, subscription, len(expected)), expected.values())


async def nothing_overtakes_what_is_refused(rig: Rig) -> None:
    """Messages that the broker refuses are named by PublishError, and no others. Where a batch is
    stored in one step, so are those behind them that have their key, which are not stored either.
    Once it refuses no longer, they can be published."""
    refuse = needed(rig.refuse, "refuse")
    taking, refusing = rig.subscription("taking"), rig.subscription("refusing", "refused")
    ahead, behind = rig.envelopes(2)
    [odd] = rig.envelopes(1, "refused")
    others = rig.envelopes(2, key="other")
    async with rig.open() as transport:
        await transport.declare([taking])
        async with refuse(odd.name):
            named = await _publish_some(transport, [ahead, others[0], odd, behind, others[1]])
        overtaking = [behind] if transport.atomic_batches else []
        expect(named == [each.id for each in (odd, *overtaking)], f"named: {named}")
        expected = [ahead, *others] if overtaking else [ahead, behind, *others]
        in_order(await drain(rig, transport, taking, len(expected)), expected)
        await transport.declare([refusing])
        await transport.publish([odd, *overtaking])
        same_ids(await drain(rig, transport, refusing, 1), [odd])
        same_ids(await drain(rig, transport, taking, len(overtaking)), overtaking)


async def _publish_some(transport: Transport, batch: list[Envelope]) -> list[str]:
    """Publish a batch of which some are refused; returns the ids that are named, in its order."""
    try:
        await transport.publish(batch)
    except PublishError as error:
        return [each.id for each in batch if each.id in error.refused]
    return []


async def many_tasks_share_a_transport(rig: Rig) -> None:
    """Tasks may publish at the same time, each keeping its own order, and settle deliveries of
    one consumer at the same time."""
    subscription = rig.subscription("busy")
    sent = {key: rig.envelopes(40, key=key) for key in "abcde"}
    everything = [envelope for each in sent.values() for envelope in each]
    async with rig.open() as transport:
        await transport.declare([subscription])

        async def publish(envelopes: list[Envelope]) -> None:
            for start in range(0, 40, 8):
                await transport.publish(envelopes[start : start + 8])

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
    """Deliveries by their attempt, settled each by a task of its own: every fifth message is
    retried once."""
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
