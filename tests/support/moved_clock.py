"""A monotonic clock that a test moves forward, for code that talks to real servers."""

from __future__ import annotations

from eventmesh.clock import SystemClock


class MovedClock(SystemClock):
    """The machine's clock, with `monotonic` moved forward by `ahead` seconds."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead
