"""Unrouted messages: those that no subscription wants yet."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from eventmesh.testing.conformance.observing import (
    counted,
    drain,
    eventually_async,
    expect,
    in_order,
    same_ids,
)
from eventmesh.testing.conformance.rig import FOR_EVER, Rig
from eventmesh.transports.base import Transport, Unrouted, publish_or_raise


async def unrouted_messages_are_listed_kept_and_purged(rig: Rig) -> None:
    """Messages without a subscription are counted by name, kept for the first one, and deleted only
    as requested: the oldest, those of an age, or all of a name. A message that a subscription wants
    is never deleted."""
    first, second = rig.subscription("first", "happened"), rig.subscription("second", "ended")
    [happened], [ended] = first.messages, second.messages
    names = (happened, ended)
    async with rig.open(FOR_EVER) as transport:
        await _holds(rig, transport, {})
        sent, others = rig.envelopes(30, "happened"), rig.envelopes(4, "ended")
        await publish_or_raise(transport, [*sent, *others])
        await _holds(rig, transport, {happened: 30, ended: 4})
        looked = await transport.unrouted(names, [first, second], thorough=True)
        expect({happened: 30, ended: 4}.items() <= _numbers(looked).items(), looked)
        expect(all((each.oldest_age or 0) >= 0 for each in looked), looked)
        purged = await transport.purge_unrouted(happened, [first, second], keep=12)
        expect(purged == 18, f"{purged} purged instead of 18")
        purged = await transport.purge_unrouted(happened, [first, second], keep=12)
        expect(purged == 0, f"{purged} purged, and only as many were there as are to be kept")
        purged = await transport.purge_unrouted(happened, [first, second], older_than=3600)
        expect(purged == 0, f"{purged} purged, and none is an hour old")
        await _holds(rig, transport, {happened: 12, ended: 4})
        await transport.declare([first])
        await _holds(rig, transport, {ended: 4})
        purged = await transport.purge_unrouted(happened, [first, second])
        expect(purged == 0, f"{purged} purged that a subscription takes")
        in_order(await drain(rig, transport, first, 12), sent[18:])
        purged = await transport.purge_unrouted(ended, [first, second])
        expect(purged == 4, f"{purged} purged instead of 4")
        await transport.declare([second])
        await counted(rig, transport, second, ready=0)


async def unrouted_messages_reach_the_first_subscription_once(rig: Rig) -> None:
    """Unrouted messages are delivered to the first subscription once and are then no longer
    unrouted, also if two processes declare it at the same moment."""
    subscription = rig.subscription("first", "happened")
    async with rig.open(FOR_EVER) as transport, rig.open(FOR_EVER) as other:
        sent = rig.envelopes(300, "happened")
        await publish_or_raise(transport, sent)
        await asyncio.gather(transport.declare([subscription]), other.declare([subscription]))
        same_ids(await drain(rig, transport, subscription, 300), sent)
        await _holds(rig, transport, {})
        await counted(rig, transport, subscription, ready=0)


async def _holds(rig: Rig, transport: Transport, expected: Mapping[str, int]) -> None:
    """GuaranteeBroken unless these become the numbers of this rig's unrouted messages."""
    names = rig.subscription("any", "happened", "ended").messages
    told: Mapping[str, int] = {}

    async def agrees() -> bool:
        nonlocal told
        told = _numbers(each for each in await transport.unrouted(names) if each.message in names)
        return told == expected

    try:
        await eventually_async(rig, agrees, "")
    except AssertionError:
        expect(False, f"{told} are reported instead of {expected}")


def _numbers(found: Iterable[Unrouted]) -> dict[str, int]:
    return {each.message: each.number for each in found}
