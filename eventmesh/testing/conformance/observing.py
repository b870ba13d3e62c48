"""What guarantees have in common: receiving, waiting, comparing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.testing.conformance.rig import GuaranteeBroken, Rig
from eventmesh.transports.base import Consumer, Delivery, Subscription, Transport
from eventmesh.transports.outcome import DONE, RetryAfter
from eventmesh.wire.envelope import Envelope

T = TypeVar("T")

BACK_OFF = 0.05
"""Seconds between two attempts to reach a broker that was lost."""


def expect(holds: bool, seen: object) -> None:
    """GuaranteeBroken, showing what was seen, unless it holds."""
    if not holds:
        raise GuaranteeBroken(str(seen))


def same_ids(got: Iterable[Delivery], sent: Iterable[Envelope]) -> None:
    """GuaranteeBroken unless each of the sent was delivered once, and nothing else."""
    delivered = sorted(delivery.envelope.id for delivery in got)
    expected = sorted(envelope.id for envelope in sent)
    expect(
        delivered == expected,
        f"{len(delivered)} delivered, {len(set(delivered))} different, {len(expected)} sent",
    )


def in_order(got: Iterable[Delivery], sent: Iterable[Envelope]) -> None:
    """GuaranteeBroken unless exactly the sent were delivered, those of each key in their order."""
    expect(
        _numbers_by_key(delivery.envelope for delivery in got) == _numbers_by_key(sent),
        "another order",
    )


def _numbers_by_key(envelopes: Iterable[Envelope]) -> dict[str, list[str]]:
    ids: dict[str, list[str]] = {}
    for envelope in envelopes:
        ids.setdefault(envelope.attributes["partitionkey"], []).append(envelope.id)
    return ids


async def eventually(rig: Rig, condition: Callable[[], bool], what: str) -> None:
    """Return once the condition holds; GuaranteeBroken when it does not in time."""

    async def ask() -> bool:
        return condition()

    await eventually_told(rig, ask, what)


async def eventually_told(rig: Rig, condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """As `eventually`, for a condition that has to be asked for."""
    clock = SystemClock()
    deadline = clock.monotonic() + rig.patience
    while not await condition():
        expect(clock.monotonic() < deadline, f"not within {rig.patience:.0f} s: {what}")
        await clock.sleep(0.005)


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
    """GuaranteeBroken when anything is delivered in this time."""
    try:
        async with asyncio.timeout(seconds):
            got = await consumer.receive(100)
    except TimeoutError:
        return
    raise GuaranteeBroken(f"nothing should come, but this did: {got}")


async def reaching(rig: Rig, work: Callable[[], Awaitable[T]]) -> T:
    """What the work returns, which is done again for as long as the broker is Unreachable."""
    clock = SystemClock()
    deadline = clock.monotonic() + rig.patience
    while True:
        try:
            return await work()
        except Unreachable as error:
            expect(clock.monotonic() < deadline, f"still not reached: {error}")
        await clock.sleep(BACK_OFF)


async def drain_anew(
    rig: Rig, transport: Transport, subscription: Subscription, count: int
) -> list[Delivery]:
    """`count` different messages, settled as done. Whenever the broker is lost, it is consumed
    anew, and what comes twice then counts once."""
    got: dict[str, Delivery] = {}

    async def drain_what_comes() -> None:
        async with transport.consume(subscription, prefetch=100) as consumer:
            while len(got) < count:
                batch = await receive(rig, consumer, 1)
                await consumer.settle([(delivery, DONE) for delivery in batch])
                got.update((delivery.envelope.id, delivery) for delivery in batch)

    await reaching(rig, drain_what_comes)
    return list(got.values())


async def notices_the_loss(rig: Rig, consumer: Consumer) -> None:
    """Return once a consumer whose connection is gone says that it is Unreachable, or has
    connected again by itself and delivers; GuaranteeBroken when it just waits, with something
    there to deliver."""
    try:
        with suppress(Unreachable):
            async with asyncio.timeout(rig.patience):
                await consumer.receive(1)
    except TimeoutError:
        raise GuaranteeBroken(
            f"the consumer lost its broker and did not say so in {rig.patience:.0f} s"
        ) from None


async def either(rig: Rig, holder: Consumer, idle: Consumer, count: int) -> Sequence[Delivery]:
    """`count` deliveries of `holder`; what went to `idle` first is given over by retry."""
    giving = asyncio.ensure_future(_give_over(idle))
    try:
        return await receive(rig, holder, count)
    finally:
        giving.cancel()
        await asyncio.gather(giving, return_exceptions=True)


async def _give_over(consumer: Consumer) -> None:
    while True:
        batch = await consumer.receive(1)
        await consumer.settle([(delivery, RetryAfter(0.05)) for delivery in batch])


async def die_while_holding(
    rig: Rig, transport: Transport, subscription: Subscription, count: int
) -> None:
    """Let a consumer receive `count` deliveries and vanish: another process, by SIGKILL, where
    another can reach the broker."""
    if rig.url is not None:
        await _kill_while_holding(rig, rig.url, subscription, count)
        return
    async with transport.consume(subscription, prefetch=count) as consumer:
        await receive(rig, consumer, count)


async def _kill_while_holding(rig: Rig, url: str, subscription: Subscription, count: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eventmesh.testing.conformance.hostage"),
        *(url, rig.prefix, str(rig.visibility_timeout), str(count)),
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
    """Run these beside the body and cancel them after it; one that failed fails it."""
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
