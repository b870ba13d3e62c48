"""Measures the mesh once in an interval for all open pages, and remembers the last minutes.

Brokers and databases are asked by one task of the process, however many pages are open. It begins
when a page is first asked for, and rests when nobody has looked for ten minutes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from eventmesh.clock import Clock
from eventmesh.operations.status import MeshStatus

KEPT = 150
"""How many measurements are remembered."""

REST_AFTER = 600.0
"""Seconds without a page after which nothing is measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement, numbered from 1."""

    number: int
    status: MeshStatus


class Sampler:
    def __init__(
        self, measure: Callable[[], Awaitable[MeshStatus]], clock: Clock, interval: float
    ) -> None:
        self.interval = interval
        self._measure = measure
        self._clock = clock
        self._kept: deque[Sample] = deque(maxlen=KEPT)
        self._numbered = 0
        self._next: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._last_asked = 0.0

    @property
    def history(self) -> tuple[Sample, ...]:
        """The measurements that are remembered, oldest first."""
        return tuple(self._kept)

    async def latest(self, within: float) -> Sample | None:
        """The newest measurement. If there is none yet, it is waited for, `within` seconds; then
        None. What a measurement raises is raised here."""
        if self._kept:
            self._run()
            return self._kept[-1]
        try:
            return await asyncio.wait_for(self.after(0), within)
        except TimeoutError:
            return None

    async def after(self, number: int) -> Sample:
        """The newest measurement once its number is higher than this."""
        while True:
            task, following = self._run()
            if self._kept and self._kept[-1].number > number:
                return self._kept[-1]
            await asyncio.wait([task, following], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()  # raises what the measurement raised

    async def close(self) -> None:
        """Stop measuring; whoever waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _run(self) -> tuple[asyncio.Task[None], asyncio.Future[None]]:
        """The task that measures, begun if it is not running, and its next measurement."""
        self._last_asked = self._clock.monotonic()
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._go_on())
        return self._task, self._next

    async def _go_on(self) -> None:
        while self._clock.monotonic() - self._last_asked < REST_AFTER:
            status = await self._measure()
            self._numbered += 1
            self._kept.append(Sample(self._numbered, status))
            done, self._next = self._next, asyncio.get_running_loop().create_future()
            if done is not None:
                done.set_result(None)
            await self._clock.sleep(self.interval)
