"""A census counts every message, and changes nothing; a search finds one."""

from __future__ import annotations

import asyncio
from collections import Counter

from eventmesh.testing.conformance.observing import (
    counted,
    drain,
    eventually,
    eventually_async,
    expect,
    in_order,
    receive,
    running,
)
from eventmesh.testing.conformance.rig import FOR_EVER, NotApplicable, Rig
from eventmesh.transports.base import Delivery, publish_or_raise
from eventmesh.transports.census import Census
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.wire.envelope import Envelope


async def a_census_counts_every_message(rig: Rig) -> None:
    """A census counts, for each version, the ready, delayed, in-flight and dead messages of a
    subscription, and unrouted ones. In-flight messages that the broker does not show are hidden,
    never 0. A census creates nothing."""
    subscription = rig.subscription("counted", "happened", "ended")
    async with rig.open(FOR_EVER) as transport:

        async def count(**expected: int) -> None:
            seen: Census | None = None

            async def agrees() -> bool:
                nonlocal seen
                seen = await transport.census([subscription], subscription.messages)
                return _agrees(_told(seen), Counter(expected), seen)

            try:
                await eventually_async(rig, agrees, "")
            except AssertionError:
                expect(False, f"{expected} is what is there, and {seen and seen.lots} is told")

        await count()
        sent = _versions(rig.envelopes(7, "happened"), 1, 1, 1, 2, 2, 2, None)
        await publish_or_raise(transport, sent[:1])
        await count(unrouted_happened_1=1)
        await transport.declare([subscription])
        await publish_or_raise(transport, sent[1:])
        await publish_or_raise(transport, _versions(rig.envelopes(2, "ended"), 1, 3))
        rest = {"ready_ended_1": 1, "ready_ended_3": 1}
        await count(ready_happened_1=3, ready_happened_2=3, ready_happened_None=1, **rest)
        async with transport.consume(subscription, prefetch=9) as consumer:
            got = {each.envelope.id: each for each in await receive(rig, consumer, 9)}
            first, second, third, fourth = (got[each.id] for each in sent[:4])
            await consumer.settle([(first, Dead("no")), (second, RetryAfter(600))])
            await consumer.settle([(fourth, DONE)])
            gone = {"dead_happened_1": 1, "delayed_happened_1": 1}
            held = {"in_flight_happened_1": 1, "in_flight_happened_2": 2}
            others = {"in_flight_happened_None": 1, "in_flight_ended_1": 1, "in_flight_ended_3": 1}
            await count(**gone, **held, **others)
        await count(**gone, ready_happened_1=1, ready_happened_2=2, ready_happened_None=1, **rest)
        [letter] = await transport.dead_letters(subscription, limit=10)
        await transport.discard(subscription, [letter.id])
        left = await drain(rig, transport, subscription, 6)
        expect(third.envelope.id in {each.envelope.id for each in left}, left)
        await count(delayed_happened_1=1)
        stranger = await transport.census([rig.subscription("stranger", "unheard")])
        expect(not stranger.lots, "nobody has published what this subscription takes")


async def messages_are_found_without_being_delivered(rig: Rig) -> None:
    """A search finds the ready, delayed, in-flight and unrouted messages with an id, a correlation
    id or a key, and no others, and delivers none. Where a broker would have to deliver them, it
    reports how many it has not looked into."""
    subscription = rig.subscription("searched", "happened")
    async with rig.open(FOR_EVER) as transport:
        [unrouted] = rig.envelopes(1, "unheard")
        await publish_or_raise(transport, [unrouted])
        await transport.declare([subscription])
        sent = [each for key in ("a", "b", "c") for each in rig.envelopes(1, key=key)]
        caused = Envelope({**sent[1].attributes, "correlationid": "the first"}, b"{}")
        await publish_or_raise(transport, [sent[0], caused, sent[2]])
        unheard = rig.subscription("none", "unheard").messages

        async def find(*wanted: str) -> set[tuple[str, str]]:
            found = await transport.find([subscription], unheard, wanted)
            expect(all(each.state != "dead" for each in found.messages), found)
            if found.hidden:
                raise NotApplicable("; ".join(each.why for each in found.hidden[:1]))
            return {(each.state, each.envelope.id) for each in found.messages}

        expect(await find("nobody") == set(), "nothing has this id")
        expect(await find(unrouted.id) == {("unrouted", unrouted.id)}, "an unrouted message")
        async with transport.consume(subscription, prefetch=3) as consumer:
            got = {each.envelope.id: each for each in await receive(rig, consumer, 3)}
            await consumer.settle([(got[sent[0].id], RetryAfter(600)), (got[sent[2].id], DONE)])
            expect(await find(sent[0].id) == {("delayed", sent[0].id)}, "a delayed message")
            expect(await find("the first") == {("in_flight", caused.id)}, "one in flight")
            expect(await find("c") == set(), "it is settled")
        found = await find("b", "a")
        expect(found == {("ready", caused.id), ("delayed", sent[0].id)}, found)
        [again] = await drain(rig, transport, subscription, 1)
        expect((again.attempt, again.deliveries) in ((1, 1), (1, 2)), again)


async def a_census_changes_nothing(rig: Rig) -> None:
    """While messages are published and handled, repeated censuses lose, duplicate and reorder
    nothing, and start no new attempt."""
    subscription = rig.subscription("undisturbed")
    keys = [rig.envelopes(100, key=key) for key in ("a", "b", "c")]
    sent = [envelope for each in zip(*keys, strict=True) for envelope in each]
    got: list[Delivery] = []
    async with rig.open(FOR_EVER) as transport, rig.open(FOR_EVER) as looking:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent[:150])

        async def publish() -> None:
            for start in range(150, 300, 10):
                await publish_or_raise(transport, sent[start : start + 10])
                await asyncio.sleep(0.02)

        async def handle() -> None:
            async with transport.consume(subscription, prefetch=20) as consumer:
                while True:
                    batch = await consumer.receive(5)
                    await asyncio.sleep(0.01)
                    await consumer.settle([(delivery, DONE) for delivery in batch])
                    got.extend(batch)

        async with running(handle(), publish()):
            for _ in range(3):
                found = await looking.census([subscription], subscription.messages)
                expect(sum(lot.number for lot in found.lots.values()) <= 300, found.lots)
            await eventually(rig, lambda: len(got) >= 300, "all 300 were handled")
        in_order(got, sent)
        late = rig.subscription("late", "ended")
        kept = rig.envelopes(20, "ended")
        await publish_or_raise(transport, kept)
        # Also of those that are looked at while their first subscription is declared.
        await asyncio.gather(looking.census([late], late.messages), transport.declare([late]))
        in_order(await drain(rig, transport, late, 20), kept)
        expect(all(delivery.attempt == 1 for delivery in got), "a census counts no attempt")
        await counted(rig, transport, subscription, ready=0, dead=0)


def _versions(envelopes: list[Envelope], *versions: int | None) -> list[Envelope]:
    """The same messages with these versions; None makes a message without a version."""
    return [
        Envelope(
            {
                **envelope.attributes,
                "dataschema": f"urn:eventmesh:{envelope.name}:{version}" if version else "other",
            },
            envelope.data,
        )
        for envelope, version in zip(envelopes, versions, strict=True)
    ]


def _told(census: Census) -> Counter[str]:
    """The counts by state, last part of the name, and version."""
    return Counter(
        {
            f"{kind.state}_{kind.message.rpartition('.')[2]}_{kind.version}": lot.number
            for kind, lot in census.lots.items()
        }
    )


def _agrees(told: Counter[str], expected: Counter[str], census: Census) -> bool:
    """Whether everything was counted, except in-flight messages if they are hidden."""
    hidden = {(each.state, each.number) for each in census.hidden}
    flying = {name for name in expected if name.startswith("in_flight")}
    if hidden == {("in_flight", None)} and not any(told[name] for name in flying):
        return +told == Counter({n: c for n, c in expected.items() if n not in flying})
    return +told == expected and not hidden
