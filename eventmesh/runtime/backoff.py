"""How long to wait before asking a server again that did not answer."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from eventmesh.clock import Clock


class Reconnect:
    """Waits longer with each failure in a row, twice as long each time from `first` seconds up to
    `most`, and by chance between half and all of that."""

    def __init__(self, clock: Clock, *, first: float = 0.1, most: float = 2.0) -> None:
        self._clock = clock
        self._first = first
        self._most = most
        self._failures = 0

    def succeeded(self) -> None:
        """Begin again with the shortest wait."""
        self._failures = 0

    async def wait(self, stopping: asyncio.Future[Any] | None = None) -> None:
        """Wait for the next try, or for `stopping` if that is sooner."""
        most = min(self._first * 2.0**self._failures, self._most)
        self._failures = min(self._failures + 1, 16)
        pause = most * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, no secret
        if stopping is None:
            await self._clock.sleep(pause)
            return
        sleeping = asyncio.ensure_future(self._clock.sleep(pause))
        waits: list[asyncio.Future[Any]] = [sleeping, stopping]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
