"""Messages of a key come in order to a subscription that asks for it, whoever consumes it, and
whatever fails."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.conformance.observing import (
    BACK_OFF,
    counted,
    die_while_holding,
    drain,
    eventually,
    expect,
    expect_silence,
    in_order,
    receive,
    running,
)
from eventmesh.testing.conformance.rig import FOR_EVER, NotApplicable, Rig
from eventmesh.transports.base import (
    Consumer,
    Delivery,
    Order,
    Subscription,
    Transport,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope

DELAY = 0.5
"""Seconds; long enough to see what does not come meanwhile."""

KEYS, OF_EACH_KEY, WORKERS = 200, 5, 3
"""How many messages the workers of the last guarantee take, and how many they are."""

FEW = 4
"""Partitions, where their number does not matter: a broker may have to make each of them."""

SEED = 7


async def a_key_goes_to_one_consumer_at_a_time(rig: Rig) -> None:
    """While a message of a key is unsettled, nobody receives the next of it, but those of other
    keys; once it is settled, the next comes."""
    subscription = rig.subscription("ordered", order=Order())
    names = [f"key-{number}" for number in range(20)]
    async with _ordering(rig) as first, rig.open(FOR_EVER) as second:
        await first.declare([subscription])
        await publish_or_raise(first, rig.envelopes(1, key=names[0]))
        async with (
            first.consume(subscription, prefetch=100) as one,
            second.consume(subscription, prefetch=100) as two,
        ):
            got: list[tuple[Consumer, Delivery]] = []

            async def take(consumer: Consumer) -> None:
                while True:
                    got.extend((consumer, each) for each in await consumer.receive(100))

            async with running(take(one), take(two)):
                await eventually(rig, lambda: len(got) == 1, "the first message came")
                others = [each for name in names[1:] for each in rig.envelopes(1, key=name)]
                await publish_or_raise(first, [*rig.envelopes(1, key=names[0]), *others])
                await eventually(rig, lambda: len(got) >= 20, "one of each other key came")
                await asyncio.sleep(0.2)  # for what should not come
                keys = [delivery.envelope.key for _, delivery in got]
                expect(sorted(map(str, keys)) == sorted(names), f"two of a key came: {keys}")
                consumer, delivery = got[0]
                await consumer.settle([(delivery, DONE)])
                await eventually(rig, lambda: len(got) == 21, "the next of the key came")


async def a_retry_holds_back_its_key(rig: Rig) -> None:
    """What comes after a message that is to be retried comes after its retry, as a first delivery;
    other keys go on, and a retry that fails again holds its key back again."""
    subscription = rig.subscription("ordered", order=Order(partitions=FEW))
    a1, a2, a3 = rig.envelopes(3, key="a")
    b1, b2 = rig.envelopes(2, key="b")
    c1, c2, c3 = rig.envelopes(3, key="c")
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, [a1, b1, c1, a2, c2])
        async with transport.consume(subscription, prefetch=100) as consumer:
            got = {each.envelope.id: each for each in await _receive_of(rig, consumer, 5, a1, a2)}
            await consumer.settle([(got[c1.id], RetryAfter(600)), (got[b1.id], DONE)])
            await publish_or_raise(transport, [c3, b2])
            [second] = await receive(rig, consumer, 1)
            expect(second.envelope.id == b2.id, f"{second} came before the retry of its key")
            await consumer.settle([(second, DONE)])
            await expect_silence(consumer, DELAY / 2)
            await consumer.settle([(got[a1.id], RetryAfter(0.1))])
            await publish_or_raise(transport, [a3])
            for attempt in (2, 3):
                again = await _receive_of(rig, consumer, 3, a1, a2, a3)
                seen = [(each.attempt, each.deliveries) for each in again]
                expect(seen == [(attempt, 1), (1, 1), (1, 1)], again)
                if attempt == 2:
                    await consumer.settle([(again[0], RetryAfter(0.1))])
            await consumer.settle([(each, DONE) for each in again])
            await counted(rig, transport, subscription, ready=0, delayed=3, in_flight=0)


async def settling_what_was_taken_back_has_no_effect(rig: Rig) -> None:
    """A message that was received behind one that is to be retried comes again, also if its
    consumer settles it."""
    subscription = rig.subscription("ordered", order=Order(partitions=FEW))
    sent = rig.envelopes(3, key="a")
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=100) as consumer:
            first, second, third = await receive(rig, consumer, 3)
            await consumer.settle([(first, RetryAfter(0.1)), (second, DONE)])
            await consumer.settle([(third, Dead("no", ""))])
        in_order(await drain(rig, transport, subscription, 3), sent)
        await counted(rig, transport, subscription, dead=0)


async def a_dead_letter_lets_its_key_continue(rig: Rig) -> None:
    """By default, the next message of a key comes after a dead letter; when that is replayed, it
    comes before all that still waits in its key."""
    subscription = rig.subscription("ordered", order=Order(partitions=FEW))
    sent = rig.envelopes(3, key="a")
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent[:2])
        async with transport.consume(subscription, prefetch=100) as consumer:
            got = await receive(rig, consumer, 2)
            await consumer.settle([(got[0], Dead("no", ""))])
            [second] = await receive(rig, consumer, 1)
            expect(second.envelope.id == sent[1].id, f"{second} came after the dead letter")
        await publish_or_raise(transport, sent[2:])
        [letter] = await transport.dead_letters(subscription, limit=10)
        await transport.replay(subscription, [letter.id])
        in_order(await drain(rig, transport, subscription, 3), sent)


async def replayed_dead_letters_keep_their_order(rig: Rig) -> None:
    """Dead letters of a key that are replayed together, or one after the other, come in that order,
    before all that still waits in the key; also behind one that failed again meanwhile."""
    subscription = rig.subscription("ordered", order=Order(partitions=FEW))
    sent = rig.envelopes(6, key="a")
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent[:5])
        async with transport.consume(subscription, prefetch=100) as consumer:
            for _ in range(5):
                [first] = await receive(rig, consumer, 1)
                await consumer.settle([(first, Dead("no", ""))])
        await publish_or_raise(transport, sent[5:])
        letters = await transport.dead_letters(subscription, limit=10)
        ids = {letter.envelope.id: letter.id for letter in letters}
        await transport.replay(subscription, [ids[each.id] for each in sent[:3]])
        async with transport.consume(subscription, prefetch=100) as consumer:
            [first] = await receive(rig, consumer, 1)
            await consumer.settle([(first, RetryAfter(DELAY))])
        for each in sent[3:5]:
            await transport.replay(subscription, [ids[each.id]])
        in_order(await drain(rig, transport, subscription, 6), sent)


async def a_dead_letter_can_hold_its_key(rig: Rig) -> None:
    """If the order says so, what comes after a dead letter is held until that is replayed, and then
    comes after it, or discarded. It is counted; other keys go on."""
    subscription = rig.subscription("ordered", order=Order(after_dead="hold", partitions=FEW))
    a, b, c = (rig.envelopes(3, key=key) for key in "abc")
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, [*a[:2], *b[:2], c[0]])
        async with transport.consume(subscription, prefetch=100) as consumer:
            got = {each.envelope.id: each for each in await _receive_of(rig, consumer, 5, *a[:2])}
            failed = [(got[each.id], Dead("no", "")) for each in (a[0], b[0])]
            await consumer.settle([*failed, (got[c[0].id], DONE)])
            await publish_or_raise(transport, [a[2], b[2], c[1]])
            [other] = await receive(rig, consumer, 1)
            expect(other.envelope.id == c[1].id, f"{other} came after a dead letter of its key")
            await consumer.settle([(other, DONE)])
            await expect_silence(consumer, DELAY / 2)
            await counted(rig, transport, subscription, ready=0, delayed=4, held=4, dead=2)
            letters = await transport.dead_letters(subscription, limit=10)
            letter_of = {letter.envelope.id: letter.id for letter in letters}
            await transport.replay(subscription, [letter_of[a[0].id]])
            again = await _receive_of(rig, consumer, 3, *a)
            await consumer.settle([(each, DONE) for each in again])
            await transport.discard(subscription, [letter_of[b[0].id]])
            rest = await _receive_of(rig, consumer, 2, *b[1:])
            await consumer.settle([(each, DONE) for each in rest])
        await counted(rig, transport, subscription, ready=0, delayed=0, held=0, dead=0)


async def keys_are_released_when_dead_letters_hold_none_any_more(rig: Rig) -> None:
    """If the order changes from "hold" to "continue", what was held comes, and so does what is
    published then. A dead letter from before has no part in who holds the key later."""
    holding = rig.subscription("ordered", order=Order(after_dead="hold", partitions=FEW))
    continuing = replace(holding, order=Order(partitions=FEW))
    sent = rig.envelopes(6, key="a")
    async with _ordering(rig) as transport:
        for published, dying in ((sent[:2], sent[0]), (sent[3:5], sent[3])):
            await transport.declare([holding])
            await publish_or_raise(transport, published)
            async with transport.consume(holding, prefetch=100) as consumer:
                first, *_ = await receive(rig, consumer, 2)
                expect(first.envelope.id == dying.id, f"{first} came first")
                await consumer.settle([(first, Dead("no", ""))])
            if dying is sent[0]:
                await transport.declare([continuing])
                in_order(await drain(rig, transport, continuing, 1), sent[1:2])
                await publish_or_raise(transport, sent[2:3])
                in_order(await drain(rig, transport, continuing, 1), sent[2:3])
        letters = await transport.dead_letters(holding, limit=10)
        former = [each.id for each in letters if each.envelope.id == sent[0].id]
        await transport.discard(holding, former)
        async with transport.consume(holding, prefetch=100) as consumer:
            await expect_silence(consumer, DELAY / 2)
            await transport.discard(holding, [each.id for each in letters])
            [last] = await receive(rig, consumer, 1)
            expect(last.envelope.id == sent[4].id, f"{last} came")
            await consumer.settle([(last, DONE)])


async def held_messages_are_counted(rig: Rig) -> None:
    """Stats count what is held back as delayed, and how much of that waits behind another one; a
    census counts it, too."""
    subscription = rig.subscription("ordered", order=Order(partitions=FEW))
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, rig.envelopes(3, key="a"))
        async with transport.consume(subscription, prefetch=100) as consumer:
            first, *_ = await receive(rig, consumer, 3)
            await consumer.settle([(first, RetryAfter(60.0))])
            await publish_or_raise(transport, rig.envelopes(2, key="a"))
            await counted(rig, transport, subscription, ready=0, delayed=5, held=4, in_flight=0)
            found = await transport.census([subscription])
            numbers = {kind.state: lot.number for kind, lot in found.lots.items()}
            expect(bool(found.hidden) or numbers == {"delayed": 5}, f"counted: {numbers}")


async def messages_without_a_key_are_in_order(rig: Rig) -> None:
    """They are in order among themselves, as if they had a key."""
    subscription = rig.subscription("ordered", order=Order(partitions=FEW))
    keyless = [_without_key(each) for each in rig.envelopes(5)]
    async with _ordering(rig) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, keyless)
        async with transport.consume(subscription, prefetch=100) as consumer:
            first, *_ = await receive(rig, consumer, 5)
            await consumer.settle([(first, RetryAfter(0.1))])
        got = await drain(rig, transport, subscription, 5)
        expect([each.envelope.id for each in got] == [each.id for each in keyless], got)


async def each_key_is_in_order_whatever_happens(rig: Rig) -> None:
    """Three workers take numbered messages of 200 keys, while they publish more. They fail at
    random, leave without settling what they did, and one is killed; connections are cut, if the rig
    can. Each key's messages take effect in order."""
    subscription = rig.subscription("ordered", order=Order())
    keys = [rig.envelopes(OF_EACH_KEY, key=f"key-{number}") for number in range(KEYS)]
    sent = [list(each) for each in zip(*keys, strict=True)]
    taken = _Effects()
    async with AsyncExitStack() as stack:
        opening = [_ordering(rig, rig.visibility_timeout) for _ in range(WORKERS)]
        transports = [await stack.enter_async_context(each) for each in opening]
        await transports[0].declare([subscription])
        await publish_or_raise(transports[0], sent[0])
        await die_while_holding(rig, transports[0], subscription, 20)
        workers = [
            _work(subscription, transport, taken, random.Random(SEED + number))  # noqa: S311
            for number, transport in enumerate(transports)
        ]
        async with running(*workers):
            for number, part in enumerate(sent[1:]):
                await _publish(transports[0], part)
                await asyncio.sleep(0.1)  # so that the workers are in the middle of it
                if rig.cut is not None and number % 2:
                    await rig.cut()
            while (done := len(taken.ids)) < KEYS * OF_EACH_KEY:
                what = f"another message had an effect after {done}"
                await eventually(rig, partial(taken.has_more_than, done), what)
    wrong = [(key, each) for key, each in taken.of_key.items() if each != sorted(each)]
    expect(not wrong, f"{len(wrong)} of {KEYS} keys are out of order, such as {wrong[:3]}")


class _Effects:
    """What took effect, each message once, as with an inbox."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.of_key: dict[str, list[bytes]] = defaultdict(list)

    def has_more_than(self, number: int) -> bool:
        return len(self.ids) > number

    def add(self, envelope: Envelope) -> None:
        if envelope.id not in self.ids:
            self.ids.add(envelope.id)
            self.of_key[envelope.key or ""].append(envelope.data)


async def _work(
    subscription: Subscription, transport: Transport, taken: _Effects, chance: random.Random
) -> None:
    while True:
        try:
            async with transport.consume(
                subscription, prefetch=chance.choice([5, 100])
            ) as consumer:
                for _ in range(chance.randint(1, 20)):
                    batch = await consumer.receive(chance.choice([1, 10, 100]))
                    await asyncio.sleep(chance.choice([0, 0, 0.01]))  # a handler takes its time
                    settlements = _handle(batch, taken, chance)
                    if chance.random() < 0.1:
                        break  # it is stopped before it can tell the broker
                    await consumer.settle(settlements)
        except Unreachable:
            await asyncio.sleep(BACK_OFF)


def _handle(
    batch: Sequence[Delivery], taken: _Effects, chance: random.Random
) -> list[tuple[Delivery, Outcome]]:
    settlements: list[tuple[Delivery, Outcome]] = []
    failed: set[str | None] = set()
    for delivery in batch:
        if delivery.envelope.key in failed:
            continue
        if chance.random() < 0.05:
            failed.add(delivery.envelope.key)
            settlements.append((delivery, RetryAfter(chance.choice([0.0, 0.05, 0.2]))))
        else:
            taken.add(delivery.envelope)
            settlements.append((delivery, DONE))
    return settlements


async def _receive_of(
    rig: Rig, consumer: Consumer, count: int, *in_this_order: Envelope
) -> list[Delivery]:
    """This many deliveries; GuaranteeBroken unless these are among them, in this order."""
    got = await receive(rig, consumer, count)
    wanted = [each.id for each in in_this_order]
    came = [each.envelope.id for each in got if each.envelope.id in wanted]
    expect(came == wanted, f"another order, or another message: {got}")
    return got


async def _publish(transport: Transport, envelopes: Sequence[Envelope]) -> None:
    """Publish these, again if the connection is lost meanwhile."""
    clock = SystemClock()
    while (await transport.publish(envelopes)).error is not None:
        await clock.sleep(BACK_OFF)


@asynccontextmanager
async def _ordering(rig: Rig, visibility_timeout: float = FOR_EVER) -> AsyncIterator[Transport]:
    """A connection; NotApplicable if the transport has no ordered subscriptions."""
    async with rig.open(visibility_timeout) as transport:
        if not transport.keeps_order:
            raise NotApplicable("it has no ordered subscriptions")
        yield transport


def _without_key(envelope: Envelope) -> Envelope:
    attributes = dict(envelope.attributes)
    del attributes["partitionkey"], attributes["subject"]
    return Envelope(attributes, envelope.data)
