"""Helpers of the guarantees: receiving, waiting, and comparing what came."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.conformance.rig import GuaranteeBroken, Rig
from eventmesh.transports.base import Consumer, Delivery, Subscription, SubscriptionStats, Transport
from eventmesh.transports.outcome import DONE, RetryAfter
from eventmesh.wire.envelope import Envelope

T = TypeVar("T")

BACK_OFF = 0.05
"""Seconds between two attempts to reach a broker that was lost."""

STEP = 0.05
"""Seconds of a step of the time in which nothing should come."""


def expect(holds: bool, seen: object) -> None:
    """GuaranteeBroken with `seen`, unless it holds."""
    if not holds:
        raise GuaranteeBroken(str(seen))


def same_ids(got: Iterable[Delivery], sent: Iterable[Envelope]) -> None:
    """GuaranteeBroken unless each message of `sent` was delivered once, and nothing else."""
    delivered = sorted(delivery.envelope.id for delivery in got)
    expected = sorted(envelope.id for envelope in sent)
    expect(
        delivered == expected,
        f"{len(delivered)} delivered, {len(set(delivered))} different, {len(expected)} sent",
    )


def in_order(got: Iterable[Delivery], sent: Iterable[Envelope]) -> None:
    """GuaranteeBroken unless exactly `sent` was delivered, in order within each key."""
    expect(
        _numbers_by_key(delivery.envelope for delivery in got) == _numbers_by_key(sent),
        "the messages of a key came in another order",
    )


def _numbers_by_key(envelopes: Iterable[Envelope]) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for envelope in envelopes:
        ids.setdefault(envelope.attributes["partitionkey"], []).append(envelope.id)
    return ids


async def eventually(rig: Rig, condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition holds; GuaranteeBroken if it does not within `patience`."""

    async def ask() -> bool:
        return condition()

    await eventually_async(rig, ask, what)


async def eventually_async(rig: Rig, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """As `eventually`, for an asynchronous condition."""
    clock = SystemClock()
    deadline = clock.monotonic() + rig.patience
    while not await condition():
        expect(clock.monotonic() < deadline, f"not within {rig.patience:.0f} s: {what}")
        await clock.sleep(0.005)


async def counted(
    rig: Rig, transport: Transport, subscription: Subscription, **numbers: int
) -> None:
    """Wait until the stats of a subscription tell these numbers, such as `dead=2`; a number that
    they cannot tell is not compared. Counts may lag behind what the broker has confirmed: a quorum
    queue of RabbitMQ applies what is settled in the background."""
    stats: SubscriptionStats | None = None

    async def agrees() -> bool:
        nonlocal stats
        stats = await transport.stats(subscription)
        return all(getattr(stats, name) in (number, None) for name, number in numbers.items())

    try:
        await eventually_async(rig, agrees, "")
    except GuaranteeBroken:
        expect(False, f"{numbers} is what is there, and {stats} what stats tell")


async def receive(rig: Rig, consumer: Consumer, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, unsettled."""
    got: list[Delivery] = []
    try:
        async with asyncio.timeout(rig.patience):
            while len(got) < count:
                got.extend(await consumer.receive(count - len(got)))
    except TimeoutError:
        raise GuaranteeBroken(f"{len(got)} of {count} came in {rig.patience:.0f} s") from None
    expect(len(got) == count, f"more than asked for: {len(got)} instead of {count}")
    return got


async def drain(
    rig: Rig, transport: Transport, subscription: Subscription, count: int, *, prefetch: int = 100
) -> list[Delivery]:
    """Exactly `count` deliveries, settled as done."""
    if count == 0:
        return []
    got: list[Delivery] = []
    async with transport.consume(subscription, prefetch=prefetch) as consumer:
        while len(got) < count:
            batch = await receive(rig, consumer, 1)
            got.extend(batch)
            await consumer.settle([(delivery, DONE) for delivery in batch])
    return got


async def expect_silence(consumer: Consumer, seconds: float) -> None:
    """GuaranteeBroken if anything is delivered within this time, which passes in small steps: where
    the machine stands still, only one of them is lost, and what was due meanwhile still comes."""
    receiving = asyncio.ensure_future(consumer.receive(100))
    try:
        for _ in range(math.ceil(seconds / STEP)):
            await asyncio.wait([receiving], timeout=STEP)
    finally:
        receiving.cancel()
    with suppress(asyncio.CancelledError):
        got = await receiving
        raise GuaranteeBroken(f"nothing should come, but this did: {got}")


async def retry_until_reachable(rig: Rig, work: Callable[[], Awaitable[T]]) -> T:
    """The result of the work, which is repeated while it raises Unreachable."""
    clock = SystemClock()
    deadline = clock.monotonic() + rig.patience
    while True:
        try:
            return await work()
        except Unreachable as error:
            expect(clock.monotonic() < deadline, f"still unreachable: {error}")
        await clock.sleep(BACK_OFF)


async def drain_reconnecting(
    rig: Rig, transport: Transport, subscription: Subscription, count: int
) -> list[Delivery]:
    """`count` different messages, settled as done. After a lost connection this consumes again;
    a message that comes twice counts once."""
    got: dict[str, Delivery] = {}

    async def drain_what_comes() -> None:
        async with transport.consume(subscription, prefetch=100) as consumer:
            while len(got) < count:
                batch = await receive(rig, consumer, 1)
                await consumer.settle([(delivery, DONE) for delivery in batch])
                got.update((delivery.envelope.id, delivery) for delivery in batch)

    await retry_until_reachable(rig, drain_what_comes)
    return list(got.values())


async def expect_loss_noticed(rig: Rig, consumer: Consumer) -> None:
    """Wait until a consumer that lost its connection raises Unreachable, or has reconnected and
    delivers. GuaranteeBroken if it does neither although a message is ready."""
    try:
        with suppress(Unreachable):
            async with asyncio.timeout(rig.patience):
                await consumer.receive(1)
    except TimeoutError:
        raise GuaranteeBroken(
            f"the consumer lost its connection and raised nothing in {rig.patience:.0f} s"
        ) from None


async def either(rig: Rig, holder: Consumer, idle: Consumer, count: int) -> Sequence[Delivery]:
    """`count` deliveries of `holder`; deliveries that went to `idle` are passed on by a retry."""
    giving = asyncio.ensure_future(_retry_everything(idle))
    try:
        return await receive(rig, holder, count)
    finally:
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)


async def _retry_everything(consumer: Consumer) -> None:
    while True:
        batch = await consumer.receive(1)
        await consumer.settle([(delivery, RetryAfter(0.05)) for delivery in batch])


async def die_while_holding(
    rig: Rig, transport: Transport, subscription: Subscription, count: int
) -> None:
    """Make a consumer receive `count` deliveries and die: in another process, by SIGKILL, if
    another process can reach the broker."""
    if rig.url is not None:
        await _kill_while_holding(rig, rig.url, subscription, count)
        return
    async with transport.consume(subscription, prefetch=count) as consumer:
        await receive(rig, consumer, count)


async def _kill_while_holding(rig: Rig, url: str, subscription: Subscription, count: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eventmesh.testing.conformance.hostage"),
        *(url, rig.prefix, str(rig.visibility_timeout), str(count)),
        "unordered" if subscription.order is None else "ordered",
        *(subscription.name, *subscription.messages),
        stdout=asyncio.subprocess.PIPE,
    )
    line = b""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(rig.patience):
                line = await process.stdout.readline() if process.stdout else b""
        expect(line == b"holding\n", f"the other process said {line!r}")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def running(*work: Awaitable[None]) -> AsyncIterator[None]:
    """Run these concurrently with the body, and cancel them after it; raises their errors."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    for result in ended:
        if isinstance(result, Exception):
            raise result
