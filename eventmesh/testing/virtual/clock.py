"""The virtual time as an EventMesh `Clock`, and as what the standard library tells.

Code that asks `datetime.now()`, `time.time()` or `date.today()` gets the virtual time, too: the
library time-machine replaces these functions below Python, so that it does not matter how they were
imported. `time.monotonic()` and `time.perf_counter()` keep telling real time, since tools that
measure the tests use them; ask `asyncio.get_running_loop().time()`, or take a `Clock`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import time_machine

from eventmesh.testing.virtual.chance import seeded
from eventmesh.testing.virtual.loop import BEGINNING, VirtualLoop
from eventmesh.testing.virtual.process import Process


class Ids:
    """Ids in the form of a UUIDv7 (RFC 9562), the same in each run: they sort by their virtual time
    of creation, and then in the order in which they were made."""

    def __init__(self) -> None:
        self._count = 0

    def new(self, now: datetime) -> str:
        self._count += 1
        at = f"{round(now.timestamp() * 1000):012x}"
        return f"{at[:8]}-{at[8:]}-7000-8000-{self._count:012x}"


class VirtualClock:
    """The clock of one process, or of the test."""

    def __init__(self, loop: VirtualLoop, ids: Ids, process: Process | None = None) -> None:
        self._loop = loop
        self._ids = ids
        self._process = process

    def now(self) -> datetime:
        skew = 0.0 if self._process is None else self._process.clock_skew
        return BEGINNING + timedelta(seconds=self._loop.now + skew)

    def monotonic(self) -> float:
        return self._loop.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        return self._ids.new(self._loop.date())


@contextmanager
def wall_clock(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """While the context is open, the standard library tells the loop's time, and what it draws by
    chance begins with this seed."""
    first = BEGINNING.timestamp()  # a date would set the local time zone to its own
    with seeded(seed), time_machine.travel(first, tick=False) as traveller:
        loop.on_time = lambda now: traveller.move_to(first + now)
        try:
            yield
        finally:
            loop.on_time = lambda _: None
