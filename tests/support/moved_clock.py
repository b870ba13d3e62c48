"""A clock whose durations a test makes longer, of programs that talk to real servers meanwhile."""

from __future__ import annotations

from eventmesh.clock import SystemClock


class MovedClock(SystemClock):
    """The machine's clock, but for `monotonic`, which the test moves on."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead
