"""The outcomes of a delivery: done, retried, dead-lettered; and how each is counted."""

from __future__ import annotations

import math

from eventmesh.clock import SystemClock
from eventmesh.testing.conformance.observing import (
    counted,
    drain,
    eventually_async,
    expect,
    expect_silence,
    receive,
    same_ids,
)
from eventmesh.testing.conformance.rig import FOR_EVER, GuaranteeBroken, Rig
from eventmesh.transports.base import (
    Consumer,
    DeadLetter,
    Delivery,
    SubscriptionStats,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope

LONG = 600.0
"""Seconds of a delay that does not end while a guarantee runs, however slow the machine is."""


async def settled_messages_are_gone(rig: Rig) -> None:
    """A settled message is not delivered again, not even after the visibility timeout."""
    subscription = rig.subscription("settled")
    async with rig.open(FOR_EVER) as settling, rig.open() as looking:
        await settling.declare([subscription])
        await publish_or_raise(settling, rig.envelopes(3))
        await drain(rig, settling, subscription, 3)
        async with looking.consume(subscription, prefetch=10) as consumer:
            await expect_silence(consumer, rig.visibility_timeout * 1.25)
        await counted(rig, looking, subscription, ready=0, dead=0, in_flight=0)


async def settling_out_of_order(rig: Rig) -> None:
    """Settling some deliveries of a batch does not affect the others."""
    subscription = rig.subscription("picky")
    sent = rig.envelopes(6)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await receive(rig, consumer, 6)
            await consumer.settle([(got[4], DONE), (got[1], DONE)])
        left = await drain(rig, transport, subscription, 4)
        same_ids(left, [sent[0], sent[2], sent[3], sent[5]])


async def settling_twice_is_harmless(rig: Rig) -> None:
    """A second settlement of a delivery has no effect, whatever its outcome."""
    subscription = rig.subscription("twice")
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, rig.envelopes(2))
        async with transport.consume(subscription, prefetch=2) as consumer:
            first, second = await receive(rig, consumer, 2)
            await consumer.settle([(first, DONE)])
            await consumer.settle([(first, RetryAfter(0.0)), (second, DONE)])
            await consumer.settle([(first, Dead("late")), (second, Dead("late"))])
            await expect_silence(consumer, 0.3)
        await counted(rig, transport, subscription, dead=0)


async def delayed_retry(rig: Rig) -> None:
    """A retry comes after its delay, as the next attempt and to its subscription only; it does not
    block other messages."""
    retried, other = rig.subscription("retried"), rig.subscription("other")
    waiting, first, second = rig.envelopes(3)
    clock = SystemClock()
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([retried, other])
        await publish_or_raise(transport, [waiting])
        async with transport.consume(retried, prefetch=10) as consumer:
            [delivery] = await receive(rig, consumer, 1)
            await consumer.settle([(delivery, RetryAfter(LONG))])
            await publish_or_raise(transport, [first])
            [delivery] = await receive(rig, consumer, 1)
            expect(delivery.envelope == first, f"{delivery} came, and does not wait")
            asked_at = clock.monotonic()
            await consumer.settle([(delivery, RetryAfter(2.0))])
            [again] = await receive(rig, consumer, 1)
            waited = clock.monotonic() - asked_at
            expect((again.envelope, again.attempt) == (first, 2), again)
            expect(waited >= 1.99, f"asked for 2 s, came after {waited:.3f} s")
            await publish_or_raise(transport, [second])
            await consumer.settle([(again, RetryAfter(0.0))])
            last = await receive(rig, consumer, 2)
            attempts = {each.envelope.id: each.attempt for each in last}
            expect(attempts == {first.id: 3, second.id: 1}, last)
            await consumer.settle([(each, DONE) for each in last])
        same_ids(await drain(rig, transport, other, 3), [waiting, first, second])


async def delays_do_not_block_each_other(rig: Rig) -> None:
    """A short delay that is asked for after a long one ends first."""
    subscription = rig.subscription("delays")
    sent = rig.envelopes(2)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            slow, fast = await receive(rig, consumer, 2)
            await consumer.settle([(slow, RetryAfter(LONG))])
            await consumer.settle([(fast, RetryAfter(0.2))])
            [first] = await receive(rig, consumer, 1)
            expect(first.envelope == fast.envelope, f"{first} came first")
            await consumer.settle([(first, DONE)])


async def dead_letters_are_kept(rig: Rig) -> None:
    """A dead letter keeps envelope, reason, error and attempts. It can be listed repeatedly,
    replayed to its subscription, as it is or with other data, or discarded."""
    subscription, other = rig.subscription("mortal"), rig.subscription("bystander")
    sent = rig.envelopes(3)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription, other])
        await publish_or_raise(transport, sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await receive(rig, consumer, 3)
            await consumer.settle([(got[0], RetryAfter(0.0)), (got[1], Dead("to be edited"))])
            await consumer.settle([(got[2], Dead("does not fit", "Traceback: ü"))])
            [again] = await receive(rig, consumer, 1)
            await consumer.settle([(again, Dead("gave up"))])
        await counted(rig, transport, subscription, dead=3)
        for _ in range(25):  # RabbitMQ drops a message that was returned 20 times, if let
            letters = await transport.dead_letters(subscription, limit=10)
            expect(len(letters) == 3, f"three dead letters, not {letters}")
        by_id = {letter.envelope.id: letter for letter in letters}
        letter = by_id[sent[2].id]
        expect(letter.envelope == sent[2], letter)
        expect((letter.reason, letter.error) == ("does not fit", "Traceback: ü"), letter)
        expect((letter.attempts, by_id[sent[0].id].attempts) == (1, 2), letters)
        expect(letter.subscription == subscription.name, letter)
        expect(len(await transport.dead_letters(subscription, limit=1)) == 1, "limit")
        for most_bytes, number in ((0, 0), (1, 1), (10**6, 3)):
            some = await transport.dead_letters(subscription, limit=10, most_bytes=most_bytes)
            expect(len({each.id for each in some}) == number, f"{most_bytes} bytes: {some}")
        for only in ([], [letter.id], [each.id for each in letters]):
            some = await transport.dead_letters(subscription, limit=10, only=[*only, "nothing"])
            expect({each.id for each in some} == set(only), f"only {only}, not {some}")

        missing = "01900000-0000-7000-8000-000000000000"
        expect(
            list(await transport.replay(subscription, [letter.id, missing])) == [letter.id],
            "replay names what it found",
        )
        [replayed] = await drain(rig, transport, subscription, 1)
        expect((replayed.envelope, replayed.attempt) == (sent[2], 1), replayed)
        edited = by_id[sent[1].id]
        other_data = {edited.id: b'{"edited": true}', missing: b"{}"}
        for found in ([edited.id], []):
            ids = list(await transport.replay(subscription, [edited.id], other_data))
            expect(ids == found, f"an edited dead letter is replayed once: {ids}")
        [replayed] = await drain(rig, transport, subscription, 1)
        expect((replayed.envelope.id, replayed.attempt) == (sent[1].id, 1), replayed)
        expect(replayed.envelope.data == other_data[edited.id], replayed)
        doomed = by_id[sent[0].id]
        expect(
            list(await transport.discard(subscription, [missing, doomed.id])) == [doomed.id],
            "discard names what it found",
        )
        expect(not await transport.dead_letters(subscription, limit=10), "nothing is left")
        same_ids(await drain(rig, transport, other, 3), sent)


async def one_dead_letter_for_each_message(rig: Rig) -> None:
    """A message that was dead-lettered twice is listed once, replayed once, and gone once
    discarded. A dead letter without an id, or with other data, is another message's."""
    subscription = rig.subscription("cat")
    twice, once, other = rig.envelopes(3)
    changed = Envelope(twice.attributes, b"other data")
    nameless = Envelope({**once.attributes, "id": ""}, once.data)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])

        async def bury(*sent: Envelope) -> None:
            # One by one, because a broker that can tell may take no message twice at once.
            for envelope in sent:
                await publish_or_raise(transport, [envelope])
                async with transport.consume(subscription, prefetch=1) as consumer:
                    [delivery] = await receive(rig, consumer, 1)
                    await consumer.settle([(delivery, Dead("no"))])

        async def letters() -> list[DeadLetter]:
            return list(await transport.dead_letters(subscription, limit=100))

        await bury(twice, other, twice)
        listed = await letters()
        expect([each.envelope for each in listed] == [twice, other], listed)
        first = listed[0].id
        expect(list(await transport.replay(subscription, [first])) == [first], "it is replayed")
        same_ids(await drain(rig, transport, subscription, 1), [twice])
        async with transport.consume(subscription, prefetch=1) as consumer:
            await expect_silence(consumer, 0.3)
        expect([each.envelope for each in await letters()] == [other], "one is left")

        await bury(twice, twice)
        [first] = [each.id for each in await letters() if each.envelope == twice]
        expect(list(await transport.discard(subscription, [first])) == [first], "it is discarded")
        expect([each.envelope for each in await letters()] == [other], "no copy is left")
        await counted(rig, transport, subscription, dead=1)

        await bury(twice, changed, nameless, nameless)
        data = sorted(each.envelope.data for each in await letters())
        expected = [other.data, twice.data, changed.data, nameless.data, nameless.data]
        expect(data == sorted(expected), f"these are five, and not {data}")


async def settling_is_always_possible(rig: Rig) -> None:
    """Whatever the message, the error text or the delay: the message is settled, its data is kept,
    and later messages come."""
    subscription = rig.subscription("odd")
    odd = "\x00 \x1b[2J \u2028 \U0001f642 \r\n"
    extensions = (
        {"odd": odd},
        {f"many{number}": "" for number in range(1_000)},
        {"long": "x" * 130_000},
        {"euro": "€" * 43_300},
        {"x-death": "no", "\x00": "no"},
    )
    sent = [
        Envelope({**plain.attributes, **extension}, plain.data)
        for plain, extension in zip(rig.envelopes(len(extensions)), extensions, strict=True)
    ]
    deaths = (
        Dead(odd, odd),
        Dead("\ud800", "\udfff"),
        Dead("x" * 100_000, "y" * 1_000_000),
        Dead("€" * 100_000, "€" * 100_000),
        Dead("", ""),
    )
    delays = (math.inf, math.nan, -math.inf, 1e300, -1.0, 1e-9)
    async with rig.open(FOR_EVER) as transport:
        await transport.declare([subscription])
        for envelope, death in zip(sent, deaths, strict=True):
            await publish_or_raise(transport, [envelope])
            async with transport.consume(subscription, prefetch=1) as consumer:
                [delivery] = await receive(rig, consumer, 1)
                await _settled(consumer, delivery, RetryAfter(0.0))
                [delivery] = await receive(rig, consumer, 1)
                expect(delivery.envelope.data == envelope.data, delivery)
                await _settled(consumer, delivery, death)
        letters = await transport.dead_letters(subscription, limit=100)
        kept = sorted(each.envelope.data for each in letters)
        expect(kept == sorted(each.data for each in sent), f"{len(kept)} are kept")
        for each in letters:
            (each.reason + each.error).encode()  # a text that can be shown
        await publish_or_raise(transport, rig.envelopes(len(delays)))
        async with transport.consume(subscription, prefetch=len(delays)) as consumer:
            for delay, delivery in zip(
                delays, await receive(rig, consumer, len(delays)), strict=True
            ):
                await _settled(consumer, delivery, RetryAfter(delay))
            # As soon as that is possible: what is not a number, is negative, or is next to nothing.
            await receive(rig, consumer, 4)
            await expect_silence(consumer, 0.3)


async def _settled(consumer: Consumer, delivery: Delivery, outcome: Outcome) -> None:
    try:
        await consumer.settle([(delivery, outcome)])
    except Exception as error:
        shown = f"{delivery} as {outcome}"[:500]
        raise GuaranteeBroken(f"it cannot settle {shown}: {error!r}") from error


async def stats_count_messages_by_state(rig: Rig) -> None:
    """Stats count ready and dead messages and, where the broker can tell, delayed and in-flight
    ones; where it cannot, they are None with a reason, never 0. They say whether the subscription
    is declared, and declare nothing."""
    subscription = rig.subscription("counted")
    async with rig.open(FOR_EVER) as transport:

        async def count(ready: int, delayed: int, in_flight: int, dead: int) -> None:
            expected = (ready, delayed, in_flight, dead)
            seen: SubscriptionStats | None = None

            async def agrees() -> bool:
                nonlocal seen
                seen = told = await transport.stats(subscription)
                numbers = (told.ready, told.delayed, told.in_flight, told.dead)
                hidden = {"delayed": told.delayed, "in_flight": told.in_flight}
                return (
                    all(number in (of, None) for number, of in zip(numbers, expected, strict=True))
                    and all(
                        number is not None or told.unknown.get(name)
                        for name, number in hidden.items()
                    )
                    and (told.oldest_age is None or (ready > 0 and 0 <= told.oldest_age < 60))
                )

            try:
                await eventually_async(rig, agrees, "")
            except AssertionError:
                expect(False, f"{expected} is what is there, and {seen} what stats tell")

        await count(ready=0, delayed=0, in_flight=0, dead=0)
        undeclared = await transport.stats(subscription)
        expect(not undeclared.declared, "an undeclared subscription counts as declared")
        await transport.declare([subscription])
        expect((await transport.stats(subscription)).declared, "it is declared by now")
        await publish_or_raise(transport, rig.envelopes(7))
        await count(ready=7, delayed=0, in_flight=0, dead=0)
        async with transport.consume(subscription, prefetch=4) as consumer:
            got = await receive(rig, consumer, 4)
            await count(ready=3, delayed=0, in_flight=4, dead=0)
            await consumer.settle([(got[0], Dead("no")), (got[1], RetryAfter(LONG))])
            rest = await receive(rig, consumer, 2)
            await count(ready=1, delayed=1, in_flight=4, dead=1)
            await consumer.settle([(delivery, DONE) for delivery in (*got[2:], *rest)])
            [last] = await receive(rig, consumer, 1)
            await count(ready=0, delayed=1, in_flight=1, dead=1)
        await count(ready=1, delayed=1, in_flight=0, dead=1)
        same_ids(await drain(rig, transport, subscription, 1), [last.envelope])
        await count(ready=0, delayed=1, in_flight=0, dead=1)
