"""One life of a worker process: from its start until all is quiet, or until it is killed."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

from eventmesh.clock import Clock
from eventmesh.errors import PublishError
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.transports.base import Transport
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope
from tests.crash import verdict, world
from tests.crash.points import LIFE, Kill, Life
from tests.crash.shop import REFUSED, make_desk, make_ledger
from tests.crash.states import States
from tests.crash.virtual_loop import VirtualLoop, site
from tests.crash.world import World

Told = dict[str, Any]

BETWEEN_LIVES = 1_000.0
"""Seconds, after which every lease is over."""

LOOK_INTERVAL = 0.2
LONGEST = 60.0
"""Seconds of the loop's time after which nothing more is expected to happen."""


class LoopClock:
    """The loop's time. Ids are counted up, in each life from another number."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._first = int(loop.time() / BETWEEN_LIVES) + 0x8000
        self._count = 0

    def now(self) -> datetime:
        return self._loop.date()

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        self._count += 1
        return f"01900000-0000-7000-{self._first:04x}-{self._count:012x}"


class Wire:
    """The broker, which refuses some messages, and may store a batch message by message."""

    def __init__(self, transport: Transport, sent: list[Envelope], *, whole: bool) -> None:
        self.atomic_batches = whole
        self._transport = transport
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        taken = [each for each in envelopes if each.key != REFUSED]
        for part in [taken] if self.atomic_batches else [[each] for each in taken]:
            self._sent.extend(part)
            await self._transport.publish(part)
        refused = {each.id: "refused" for each in envelopes if each.key == REFUSED}
        if refused:
            raise PublishError(refused)


def live(place: World, number: int, kill: Kill = None, states: Path | None = None) -> Told:
    """Begin at the world as the life before has left it; the first sets it up. Returns the points
    that were passed, and what was wrong in the end. With `states`, what each point would leave is
    kept there."""
    life = Life(kill)
    keeper = States(place, states, life) if states is not None else None
    if keeper is not None:
        life.on_point = keeper.note

    async def tell(loop: VirtualLoop, clock: Clock) -> Told:
        await prepare(place, number, clock)
        stop = asyncio.Event()
        working = start(life, place, clock, stop)
        found = await end(place, stop, working)
        return {"points": life.points, "faults": found, "left": keeper.left if keeper else []}

    return run(place, number, [life], tell)


def outlive(place: World, kill: Kill = None) -> Told:
    """Two workers side by side, of which the first is killed, and the other goes on. Consumers that
    compete keep no order, but what the relays publish is in order."""
    first, second = Life(kill, exits=False), Life(exits=False)

    async def tell(_loop: VirtualLoop, clock: Clock) -> Told:
        await prepare(place, 1, clock)
        stop, sent = asyncio.Event(), list[Envelope]()
        doomed, working = (start(each, place, clock, stop, sent) for each in (first, second))
        await until_quiet(place, working, sooner=lambda: first.dead)
        first.kill, passed = None, list(first.points)  # then the second goes, too
        if first.dead:
            await prepare(place, 2, clock)
            await asyncio.sleep(place.taken_over_after)  # there may be nothing else left to do
        ends = [working] if first.dead else [working, doomed]
        found = await end(place, stop, *ends, ordered=False)
        with outside():
            found += await verdict.faults_of_order(place, sent)
        return {"points": passed, "faults": found, "reached": [first.dead]}

    return run(place, 1, [first, second], tell)


def run(
    place: World,
    number: int,
    lives: Sequence[Life],
    tell: Callable[[VirtualLoop, Clock], Coroutine[Any, Any, Told]],
) -> Told:
    """On a loop of its own."""
    random.seed(number)
    loop = VirtualLoop(BETWEEN_LIVES * number, server=place.has_server)
    loop.lives.extend(lives)
    asyncio.set_event_loop(loop)
    return loop.run_until_complete(tell(loop, LoopClock(loop)))


async def prepare(place: World, number: int, clock: Clock) -> None:
    """The beginning, or the time until what a dead worker held is free."""
    with outside():
        await (world.begin(place, clock) if number == 1 else world.outlast_leases(place))


async def end(
    place: World, stop: asyncio.Event, *working: asyncio.Task[None], ordered: bool = True
) -> list[str]:
    """Let the workers get done, drain them, and say what is not as it must be."""
    found = [] if await until_quiet(place, *working) else ["it never came to rest"]
    stop.set()
    await asyncio.wait(working, timeout=LONGEST)
    for task in working:
        if not task.done():
            waits = sorted(map(site, asyncio.all_tasks()))
            return [*found, f"it cannot be stopped; its tasks wait at {waits}"]
        task.result()
    with outside():
        return found + await verdict.faults(place, ordered=ordered)


def outside() -> AbstractContextManager[None]:
    """While the test itself asks a server."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    observer = Life()
    loop.lives.append(observer)
    return observer.asks()


def start(
    life: Life, place: World, clock: Clock, stop: asyncio.Event, sent: list[Envelope] | None = None
) -> asyncio.Task[None]:
    """A worker, all of whose steps are this life's. `sent` gets what it publishes."""
    context = contextvars.copy_context()
    context.run(LIFE.set, life)
    loop = asyncio.get_running_loop()
    work = _work(place, clock, stop, [] if sent is None else sent)
    return loop.create_task(work, context=context)


async def _work(place: World, clock: Clock, stop: asyncio.Event, sent: list[Envelope]) -> None:
    settings = place.settings()
    services = [make_desk(clock), make_ledger(clock)]
    async with open_transport(settings.broker_url, clock, settings.transport_options) as transport:
        wire = Wire(transport, sent, whole=place.whole)
        await Worker(services, wire, settings, clock).run(stop)


async def until_quiet(
    place: World, *working: asyncio.Task[None], sooner: Callable[[], bool] = lambda: False
) -> bool:
    """Look from time to time; False when it takes too long, a worker has failed, or `sooner`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + LONGEST
    while loop.time() < until and not sooner():
        await asyncio.sleep(LOOK_INTERVAL)
        with outside():
            if await verdict.is_quiet(place):
                return True
        if any(task.done() for task in working):
            return False
    return False
