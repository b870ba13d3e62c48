"""When what is waited for counts as stuck."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from eventmesh.clock import Clock


class Patience:
    """Is over when nothing has moved for so many seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._since = clock.monotonic()
        self._counted = 0

    def moved(self) -> None:
        """What is waited for has come nearer."""
        self._since = self._clock.monotonic()

    async def over(self, count: Callable[[], Awaitable[int]]) -> bool:
        """Whether to give up. `count` is of the steps on the way, and costs more than to look at
        what is waited for: it is asked only when that has not moved for so long."""
        if self._clock.monotonic() - self._since < self._seconds:
            return False
        before, self._counted = self._counted, await count()
        self.moved()
        return self._counted == before
