"""How a contender is measured: the same way for all, and checked message by message.

A contender is one client with its own fresh stream or queue, made when its context is entered and
deleted when it is left. A figure counts only if the very ids that were published are the ids that
arrived, each once, and if the broker holds nothing unacknowledged afterwards.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Protocol
from uuid import UUID

from benchmarks.messages import OrderPlaced, in_batches, order_id_in
from eventmesh.wire.envelope import Envelope

BATCH = 100
"""Messages given to `publish` at once, and read and acknowledged at once by the raw clients."""

WARM_UP = 1_000
"""Messages that each run handles or publishes before its clock starts."""

RUN_TIMEOUT = 60.0
"""Seconds after which one run of a contender counts as hung."""

SETTLE_PATIENCE = 5.0
"""Seconds in which the broker must show that everything was acknowledged."""

LATENCY_WARM_UP = 20
LATENCY_PAUSE = 0.005
"""Seconds of quiet before each message whose latency is measured."""

Handle = Callable[[OrderPlaced], Awaitable[None] | None]


class Broken(Exception):
    """A contender did not do what it was measured for, so it has no figure."""


class Place(Protocol):
    """Where a contender's messages are on the broker, looked at with a plain client."""

    async def stored(self, count: int) -> list[bytes]:
        """All messages that are kept there, of which `count` are expected."""
        ...

    async def unsettled(self) -> int:
        """How many messages are not acknowledged, now that nobody consumes."""
        ...


class Contender(Protocol):
    """One client, set up for one run."""

    @property
    def place(self) -> Place: ...

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Return once the broker has them all."""
        ...

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        """Validate, handle and acknowledge what comes, until told to stop; then hold nothing."""
        ...


Make = Callable[[], AbstractAsyncContextManager[Contender]]


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages a second by the clock on the wall, and by the CPU time of this process alone. The
    latter leaves out the server, and what others on the machine take away."""

    wall: float
    cpu: float


MeasureRate = Callable[[Make, Sequence[Envelope]], Awaitable[Rate]]
"""Makes one run of a contender."""


async def consume_rate(make: Make, envelopes: Sequence[Envelope]) -> Rate:
    """Messages a second from a backlog: from the last one of the warm-up to the last of all."""
    handled: list[UUID] = []
    marks: dict[int, Mark] = {}
    full = asyncio.Event()
    total = len(envelopes)

    def handle(event: OrderPlaced) -> None:
        handled.append(event.order_id)
        if len(handled) in (WARM_UP, total):
            marks[len(handled)] = Mark()
            if len(handled) == total:
                full.set()

    async with asyncio.timeout(RUN_TIMEOUT), make() as contender:
        for batch in in_batches(envelopes, BATCH):
            await contender.publish(batch)
        settle_memory()
        await contender.consume(handle, full)
        _check("handled", handled, envelopes)
        await check_settled(contender)
    return marks[WARM_UP].rate(total - WARM_UP, until=marks[total])


async def publish_rate(make: Make, envelopes: Sequence[Envelope]) -> Rate:
    """Messages a second in batches of BATCH, each of them safe before the next."""
    async with asyncio.timeout(RUN_TIMEOUT), make() as contender:
        for batch in in_batches(envelopes[:WARM_UP], BATCH):
            await contender.publish(batch)
        settle_memory()
        began = Mark()
        for batch in in_batches(envelopes[WARM_UP:], BATCH):
            await contender.publish(batch)
        ended = Mark()
        stored = await contender.place.stored(len(envelopes))
        _check("stored", [order_id_in(raw) for raw in stored], envelopes)
    return began.rate(len(envelopes) - WARM_UP, until=ended)


async def idle_latencies(make: Make, envelopes: Sequence[Envelope]) -> list[float]:
    """Milliseconds from before `publish` to inside the handler, one message at a time."""
    arrived: asyncio.Queue[tuple[UUID, float]] = asyncio.Queue()
    stop = asyncio.Event()
    handled: list[UUID] = []
    latencies = []

    def handle(event: OrderPlaced) -> None:
        arrived.put_nowait((event.order_id, perf_counter()))

    async with asyncio.timeout(RUN_TIMEOUT), make() as contender, asyncio.TaskGroup() as tasks:
        tasks.create_task(contender.consume(handle, stop))
        for envelope in envelopes:
            await asyncio.sleep(LATENCY_PAUSE)
            began = perf_counter()
            await contender.publish([envelope])
            order_id, at = await arrived.get()
            handled.append(order_id)
            latencies.append((at - began) * 1000)
        stop.set()
    _check("handled", handled, envelopes)
    return latencies[LATENCY_WARM_UP:]


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent are."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


class Mark:
    """A moment, by both clocks."""

    def __init__(self) -> None:
        self._wall = perf_counter()
        self._cpu = process_time()

    def rate(self, count: int, until: Mark) -> Rate:
        return Rate(count / (until._wall - self._wall), count / (until._cpu - self._cpu))


def settle_memory() -> None:
    """Keep the collector off what the benchmark itself holds."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _check(what: str, got: Sequence[UUID], envelopes: Sequence[Envelope]) -> None:
    expected = {order_id_in(envelope.data) for envelope in envelopes}
    if len(got) != len(envelopes) or set(got) != expected:
        raise Broken(
            f"{what} {len(got):,} messages, {len(set(got) & expected):,} of the {len(expected):,} "
            f"that were published"
        )


async def check_settled(contender: Contender) -> None:
    deadline = perf_counter() + SETTLE_PATIENCE
    while left := await contender.place.unsettled():
        if perf_counter() > deadline:
            raise Broken(f"left {left:,} messages unacknowledged")
        await asyncio.sleep(0.05)
