"""A clock that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta


class ManualClock:
    """Time moves only by `advance`; sleepers wake in the order of their times."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._ids = itertools.count(1)
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), sleeper))
        await sleeper

    def new_id(self) -> str:
        """Ids in the form of a UUIDv7 that count up, the same in every run."""
        return f"01900000-0000-7000-8000-{next(self._ids):012x}"

    async def advance(self, seconds: float) -> None:
        """Move time forward, and run everything that becomes due."""
        until = self._elapsed + seconds
        await settle_loop()
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, sleeper = heapq.heappop(self._sleepers)
            self._elapsed = max(self._elapsed, at)
            if not sleeper.done():
                sleeper.set_result(None)
                await settle_loop()
        self._elapsed = until
        await settle_loop()


async def settle_loop(turns: int = 20) -> None:
    """Run the tasks that are ready, for as many turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
