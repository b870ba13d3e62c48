"""When a wait counts as stuck."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from eventmesh.clock import Clock


class StuckDetector:
    """Detects that nothing has progressed for this many seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._since = clock.monotonic()
        self._counted = 0

    def progressed(self) -> None:
        """Note progress."""
        self._since = self._clock.monotonic()

    async def is_stuck(self, count: Callable[[], Awaitable[int]]) -> bool:
        """Whether nothing has progressed. `count` counts finer steps and is expensive, so it is
        called only when `progressed` was not called for that long."""
        if self._clock.monotonic() - self._since < self._seconds:
            return False
        before, self._counted = self._counted, await count()
        self.progressed()
        return self._counted == before
