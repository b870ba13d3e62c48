"""What every transport guarantees, as functions that an author of a transport can run.

Each guarantee takes a `Rig`, uses only the protocol of `eventmesh.transports.base`, and raises
GuaranteeBroken with what it saw. Bind `GUARANTEES` to a test framework of your choice:

    @pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: g.__name__)
    async def test_mine(guarantee):
        await guarantee(Rig(open=..., url=...))

Names are unique to each rig, so that a broker may be shared.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from eventmesh.clock import SystemClock
from eventmesh.transports.base import Consumer, Delivery, Subscription, Transport
from eventmesh.transports.outcome import DONE, Dead, RetryAfter
from eventmesh.wire.envelope import Envelope

PATIENCE = 20.0
"""Seconds after which something that must happen counts as not happening."""


class GuaranteeBroken(AssertionError):
    """A transport did not do what every transport does."""


@dataclass(frozen=True)
class Rig:
    """What a guarantee is tried on.

    `open` gives a new connection to always the same broker, with a visibility timeout of about a
    second. `url` lets another process reach it; None when none can, as with the memory transport.
    """

    open: Callable[[], AbstractAsyncContextManager[Transport]]
    url: str | None = None
    prefix: str = "eventmesh"
    visibility_timeout: float = 1.0
    name: str = field(default_factory=lambda: f"t{secrets.token_hex(5)}")

    def subscription(self, name: str, *messages: str) -> Subscription:
        """A subscription of this rig; to the message `happened` unless others are named."""
        return Subscription(
            f"{self.name}.{name}",
            tuple(f"{self.name}.{message}" for message in messages or ("happened",)),
        )

    def envelopes(self, count: int, message: str = "happened", *, key: str = "k") -> list[Envelope]:
        """New messages, whose data is their number."""
        clock = SystemClock()
        return [
            Envelope(
                {
                    "specversion": "1.0",
                    "id": clock.new_id(),
                    "source": f"/{self.name}",
                    "type": f"{self.name}.{message}",
                    "dataschema": f"urn:eventmesh:{self.name}.{message}:1",
                    "datacontenttype": "application/json",
                    "subject": key,
                    "partitionkey": key,
                },
                b'{"number":%d}' % number,
            )
            for number in range(count)
        ]


Guarantee = Callable[[Rig], Awaitable[None]]


async def round_trip(rig: Rig) -> None:
    """An envelope arrives as it was published: unknown attributes, any Unicode, any bytes."""
    sent = Envelope(
        {**rig.envelopes(1)[0].attributes, "subject": "Łódź \u2028 日本", "myextension": "ü"},
        bytes(range(256)),
    )
    subscription = rig.subscription("reader")
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish([sent])
        async with transport.consume(subscription, prefetch=10) as consumer:
            [delivery] = await _receive(consumer, 1)
            expect(dict(delivery.envelope.attributes) == dict(sent.attributes), delivery)
            expect(delivery.envelope.data == sent.data, delivery)
            expect((delivery.attempt, delivery.deliveries) == (1, 1), delivery)
            await consumer.settle([(delivery, DONE)])


async def fan_out(rig: Rig) -> None:
    """Every subscription gets every message of the names it takes, and no other."""
    subscriptions = [rig.subscription("one"), rig.subscription("two")]
    both = rig.subscription("three", "happened", "ended")
    sent, other = rig.envelopes(5), rig.envelopes(3, "ended")
    async with rig.open() as transport:
        await transport.declare([*subscriptions, both])
        await transport.publish([*sent, *other])
        for subscription in subscriptions:
            _same_ids(await _drain(transport, subscription, 5), sent)
        _same_ids(await _drain(transport, both, 8), [*sent, *other])


async def order_for_one_consumer(rig: Rig) -> None:
    """One consumer gets messages in the order in which they were published, batch after batch."""
    subscription = rig.subscription("ordered")
    sent = rig.envelopes(60)
    async with rig.open() as transport:
        await transport.declare([subscription])
        for start in range(0, 60, 20):
            await transport.publish(sent[start : start + 20])
        got = await _drain(transport, subscription, 60)
        expect([d.envelope.id for d in got] == [e.id for e in sent], "another order")


async def competing_consumers(rig: Rig) -> None:
    """Consumers of one subscription share its messages; none is delivered to two of them."""
    subscription = rig.subscription("shared")
    sent = rig.envelopes(40)
    async with rig.open() as first, rig.open() as second:
        await first.declare([subscription])
        async with (
            first.consume(subscription, prefetch=5) as one,
            second.consume(subscription, prefetch=5) as two,
        ):
            await first.publish(sent)
            shares: list[list[Delivery]] = [[], []]

            async def take(consumer: Consumer, share: list[Delivery]) -> None:
                while True:
                    batch = await consumer.receive(5)
                    share.extend(batch)
                    await asyncio.sleep(0.01)
                    await consumer.settle([(delivery, DONE) for delivery in batch])

            async with _running(take(one, shares[0]), take(two, shares[1])):
                await eventually(lambda: len(shares[0]) + len(shares[1]) >= 40, "all 40 arrived")
                await asyncio.sleep(0.2)  # for what should not come: a second copy
        _same_ids([*shares[0], *shares[1]], sent)
        expect(all(shares), f"one of two got all: {len(shares[0])} and {len(shares[1])}")


async def backlog_before_the_first_consumer(rig: Rig) -> None:
    """What was published before anybody consumed is delivered, in order."""
    subscription = rig.subscription("late")
    sent = rig.envelopes(30)
    async with rig.open() as publisher:
        await publisher.declare([subscription])
        await publisher.publish(sent)
    async with rig.open() as transport:
        got = await _drain(transport, subscription, 30)
        expect([d.envelope.id for d in got] == [e.id for e in sent], "another order")


async def backlog_before_the_first_subscription(rig: Rig) -> None:
    """What was published before anybody subscribed is kept for the first who does, also when
    others declare theirs at the same time."""
    sent, other = rig.envelopes(50), rig.envelopes(50, "ended")
    founder, neighbour = rig.subscription("founder"), rig.subscription("neighbour", "ended")
    async with rig.open() as first, rig.open() as second:
        await first.publish([*sent, *other])
        await asyncio.gather(first.declare([founder]), second.declare([neighbour]))
        _same_ids(await _drain(first, founder, 50), sent)
        _same_ids(await _drain(second, neighbour, 50), other)


async def settled_is_gone(rig: Rig) -> None:
    """A settled message is not delivered again, also after the visibility timeout."""
    subscription = rig.subscription("settled")
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(rig.envelopes(3))
        await _drain(transport, subscription, 3)
        async with transport.consume(subscription, prefetch=10) as consumer:
            await _expect_silence(consumer, rig.visibility_timeout * 1.5)
        stats = await transport.stats(subscription)
        expect((stats.ready, stats.dead, stats.in_flight or 0) == (0, 0, 0), stats)


async def prefetch_is_a_bound(rig: Rig) -> None:
    """No more than `prefetch` deliveries are out unsettled; the rest is there for others."""
    subscription = rig.subscription("bounded")
    sent = rig.envelopes(10)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(sent)
        async with transport.consume(subscription, prefetch=4) as consumer:
            held = await _receive(consumer, 4)
            await _expect_silence(consumer, 0.2)
            async with transport.consume(subscription, prefetch=10) as other:
                rest = await _receive(other, 6)
                await other.settle([(delivery, DONE) for delivery in rest])
            await consumer.settle([(delivery, DONE) for delivery in held])
        _same_ids([*held, *rest], sent)


async def settling_out_of_order(rig: Rig) -> None:
    """Settling some of a batch leaves the others as they are."""
    subscription = rig.subscription("picky")
    sent = rig.envelopes(6)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await _receive(consumer, 6)
            await consumer.settle([(got[4], DONE), (got[1], DONE)])
        left = await _drain(transport, subscription, 4)
        _same_ids(left, [sent[0], sent[2], sent[3], sent[5]])


async def unsettled_goes_back_on_leaving(rig: Rig) -> None:
    """A consumer that leaves in good order gives back what it did not settle, at once."""
    subscription = rig.subscription("returned")
    sent = rig.envelopes(8)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await _receive(consumer, 8)
            await consumer.settle([(got[0], DONE)])
        _same_ids(await _drain(transport, subscription, 7), sent[1:])


async def receive_can_be_cancelled(rig: Rig) -> None:
    """Cancelling `receive` at any moment loses nothing."""
    subscription = rig.subscription("cancelled")
    sent = rig.envelopes(20)
    async with rig.open() as transport:
        await transport.declare([subscription])
        got: list[Delivery] = []
        async with transport.consume(subscription, prefetch=10) as consumer:
            for number, envelope in enumerate(sent):
                receiving = asyncio.ensure_future(consumer.receive(10))
                await asyncio.sleep(0)
                await transport.publish([envelope])
                await asyncio.sleep(0.0005 * number)
                receiving.cancel()
                [result] = await asyncio.gather(receiving, return_exceptions=True)
                if not isinstance(result, BaseException):
                    got.extend(result)
                    await consumer.settle([(delivery, DONE) for delivery in result])
        got.extend(await _drain(transport, subscription, 20 - len(got)))
        _same_ids(got, sent)


async def delayed_retry(rig: Rig) -> None:
    """A retry comes not before its delay, as the next attempt, to its subscription only; what
    else is there is not held up by it."""
    retried, other = rig.subscription("retried"), rig.subscription("other")
    first, second = rig.envelopes(2)
    clock = SystemClock()
    async with rig.open() as transport:
        await transport.declare([retried, other])
        await transport.publish([first])
        async with transport.consume(retried, prefetch=10) as consumer:
            [delivery] = await _receive(consumer, 1)
            asked_at = clock.monotonic()
            await consumer.settle([(delivery, RetryAfter(0.7))])
            await transport.publish([second])
            [unhindered] = await _receive(consumer, 1)
            expect(unhindered.envelope.id == second.id, unhindered)
            expect(clock.monotonic() - asked_at < 0.7, "the retry held up the next message")
            await consumer.settle([(unhindered, DONE)])
            [again] = await _receive(consumer, 1)
            waited = clock.monotonic() - asked_at
            expect(again.envelope == first, again)
            expect(again.attempt == 2, again)
            expect(0.69 <= waited < 5, f"asked for 0.7 s, came after {waited:.3f} s")
            await consumer.settle([(again, RetryAfter(0.0))])
            [third] = await _receive(consumer, 1)
            expect(third.attempt == 3, third)
            await consumer.settle([(third, DONE)])
        _same_ids(await _drain(transport, other, 2), [first, second])


async def delays_do_not_block_each_other(rig: Rig) -> None:
    """A short delay asked for after a long one is over first."""
    subscription = rig.subscription("delays")
    sent = rig.envelopes(2)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            slow, fast = await _receive(consumer, 2)
            await consumer.settle([(slow, RetryAfter(2.0))])
            await consumer.settle([(fast, RetryAfter(0.2))])
            got = [*await _receive(consumer, 1), *await _receive(consumer, 1)]
            expect([d.envelope.id for d in got] == [fast.envelope.id, slow.envelope.id], got)
            await consumer.settle([(delivery, DONE) for delivery in got])


async def dead_letters_are_kept(rig: Rig) -> None:
    """A dead letter keeps envelope, reason, error and attempts; it can be listed again and again,
    replayed to its subscription, or discarded."""
    subscription, other = rig.subscription("mortal"), rig.subscription("bystander")
    sent = rig.envelopes(3)
    async with rig.open() as transport:
        await transport.declare([subscription, other])
        await transport.publish(sent)
        async with transport.consume(subscription, prefetch=10) as consumer:
            got = await _receive(consumer, 3)
            await consumer.settle([(got[0], RetryAfter(0.0)), (got[1], DONE)])
            await consumer.settle([(got[2], Dead("does not fit", "Traceback: ü"))])
            [again] = await _receive(consumer, 1)
            await consumer.settle([(again, Dead("gave up"))])
        expect((await transport.stats(subscription)).dead == 2, "two dead letters are counted")
        for _ in range(25):  # RabbitMQ drops a message that was returned 20 times, if let
            letters = await transport.dead_letters(subscription, limit=10)
            expect(len(letters) == 2, f"two dead letters, not {letters}")
        by_id = {letter.envelope.id: letter for letter in letters}
        letter = by_id[sent[2].id]
        expect(letter.envelope == sent[2], letter)
        expect((letter.reason, letter.error) == ("does not fit", "Traceback: ü"), letter)
        expect((letter.attempts, by_id[sent[0].id].attempts) == (1, 2), letters)
        expect(letter.subscription == subscription.name, letter)
        expect(len(await transport.dead_letters(subscription, limit=1)) == 1, "limit")

        missing = "01900000-0000-7000-8000-000000000000"
        expect(
            list(await transport.replay(subscription, [letter.id, missing])) == [letter.id],
            "replay names what it found",
        )
        [replayed] = await _drain(transport, subscription, 1)
        expect((replayed.envelope, replayed.attempt) == (sent[2], 1), replayed)
        doomed = by_id[sent[0].id]
        expect(
            list(await transport.discard(subscription, [missing, doomed.id])) == [doomed.id],
            "discard names what it found",
        )
        expect(not await transport.dead_letters(subscription, limit=10), "nothing is left")
        _same_ids(await _drain(transport, other, 3), sent)


async def a_killed_consumer_gives_up_its_deliveries(rig: Rig) -> None:
    """What a process held when SIGKILL hit it is delivered to another, counted as redelivered."""
    subscription = rig.subscription("bereaved")
    sent = rig.envelopes(6)
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(sent)
        if rig.url is None:
            async with transport.consume(subscription, prefetch=10) as consumer:
                await _receive(consumer, 4)
        else:
            await _kill_while_holding(rig, subscription, 4)
        got = await _drain(transport, subscription, 6)
        _same_ids(got, sent)
        again = [delivery for delivery in got if delivery.deliveries > 1]
        expect(len(again) == 4, f"4 redelivered, not {len(again)}")


async def a_slow_consumer_keeps_its_deliveries(rig: Rig) -> None:
    """A handler slower than the visibility timeout keeps its message while its process lives."""
    subscription = rig.subscription("slow")
    sent = rig.envelopes(2)
    async with rig.open() as first, rig.open() as second:
        await first.declare([subscription])
        await first.publish(sent)
        async with (
            first.consume(subscription, prefetch=2) as slow,
            second.consume(subscription, prefetch=2) as idle,
        ):
            held = [*await _either(slow, idle, 2)]
            await _expect_silence(idle, rig.visibility_timeout * 3)
            await slow.settle([(delivery, DONE) for delivery in held])


async def settling_twice_is_harmless(rig: Rig) -> None:
    """The second settlement of a delivery is passed over, whatever it says."""
    subscription = rig.subscription("twice")
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(rig.envelopes(2))
        async with transport.consume(subscription, prefetch=2) as consumer:
            first, second = await _receive(consumer, 2)
            await consumer.settle([(first, DONE)])
            await consumer.settle([(first, RetryAfter(0.0)), (second, DONE)])
            await consumer.settle([(first, Dead("late")), (second, Dead("late"))])
            await _expect_silence(consumer, 0.3)
        expect((await transport.stats(subscription)).dead == 0, "nothing died")


async def prefetch_counts_all_messages_of_a_subscription(rig: Rig) -> None:
    """A subscription to several messages has one bound for all of them together."""
    subscription = rig.subscription("wide", "happened", "ended", "failed")
    names = ("happened", "ended", "failed")
    sent = [envelope for name in names for envelope in rig.envelopes(4, name)]
    async with rig.open() as transport:
        await transport.declare([subscription])
        await transport.publish(sent)
        async with transport.consume(subscription, prefetch=5) as consumer:
            held = await _receive(consumer, 5)
            await _expect_silence(consumer, 0.2)
            await consumer.settle([(delivery, DONE) for delivery in held])
        _same_ids([*held, *await _drain(transport, subscription, 7)], sent)


GUARANTEES: tuple[Guarantee, ...] = (
    round_trip,
    fan_out,
    order_for_one_consumer,
    competing_consumers,
    backlog_before_the_first_consumer,
    backlog_before_the_first_subscription,
    settled_is_gone,
    prefetch_is_a_bound,
    settling_out_of_order,
    unsettled_goes_back_on_leaving,
    receive_can_be_cancelled,
    delayed_retry,
    delays_do_not_block_each_other,
    dead_letters_are_kept,
    a_killed_consumer_gives_up_its_deliveries,
    a_slow_consumer_keeps_its_deliveries,
    settling_twice_is_harmless,
    prefetch_counts_all_messages_of_a_subscription,
)


def expect(holds: bool, seen: object) -> None:
    """GuaranteeBroken, showing what was seen, unless it holds."""
    if not holds:
        raise GuaranteeBroken(str(seen))


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Return once the condition holds; GuaranteeBroken when it does not in time."""
    clock = SystemClock()
    deadline = clock.monotonic() + PATIENCE
    while not condition():
        expect(clock.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}")
        await clock.sleep(0.005)


async def _receive(consumer: Consumer, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, unsettled."""
    got: list[Delivery] = []
    try:
        async with asyncio.timeout(PATIENCE):
            while len(got) < count:
                got.extend(await consumer.receive(count - len(got)))
    except TimeoutError:
        raise GuaranteeBroken(f"{len(got)} of {count} came in {PATIENCE:.0f} s") from None
    expect(len(got) == count, f"more than asked for: {len(got)} instead of {count}")
    return got


async def _drain(transport: Transport, subscription: Subscription, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, settled as done."""
    if count == 0:
        return []
    got: list[Delivery] = []
    async with transport.consume(subscription, prefetch=100) as consumer:
        while len(got) < count:
            batch = await _receive(consumer, 1)
            got.extend(batch)
            await consumer.settle([(delivery, DONE) for delivery in batch])
    return got


async def _either(holder: Consumer, idle: Consumer, count: int) -> Sequence[Delivery]:
    """`count` deliveries of `holder`; what went to `idle` first is given over by retry."""
    giving = asyncio.ensure_future(_give_over(idle))
    try:
        return await _receive(holder, count)
    finally:
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)


async def _give_over(consumer: Consumer) -> None:
    while True:
        batch = await consumer.receive(1)
        await consumer.settle([(delivery, RetryAfter(0.05)) for delivery in batch])


async def _expect_silence(consumer: Consumer, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            got = await consumer.receive(100)
    except TimeoutError:
        return
    raise GuaranteeBroken(f"nothing should come, but this did: {got}")


async def _kill_while_holding(rig: Rig, subscription: Subscription, count: int) -> None:
    """Let another process receive `count` deliveries and hold them; SIGKILL it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "eventmesh.testing.hostage",
        str(rig.url),
        rig.prefix,
        str(rig.visibility_timeout),
        str(count),
        subscription.name,
        *subscription.messages,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        expect(process.stdout is not None, "the process has an output")
        async with asyncio.timeout(PATIENCE):
            line = await process.stdout.readline() if process.stdout else b""
        expect(line == b"holding\n", f"the other process said {line!r}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def _running(*work: Awaitable[None]) -> AsyncIterator[None]:
    """Run these beside the body; cancel them after it, and let none of them fail unseen."""
    async with AsyncExitStack() as stack:
        for awaitable in work:
            task = asyncio.ensure_future(awaitable)
            stack.push_async_callback(asyncio.wait, [task])
            stack.callback(task.cancel)
        yield


def _same_ids(got: Sequence[Delivery], sent: Sequence[Envelope]) -> None:
    expect(
        sorted(delivery.envelope.id for delivery in got)
        == sorted(envelope.id for envelope in sent),
        f"{len(got)} delivered, {len({d.envelope.id for d in got})} different, {len(sent)} sent",
    )
