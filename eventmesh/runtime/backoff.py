"""How long to wait before trying a server again that did not answer.

Each failure in a row doubles the wait: with the defaults 0.1, 0.2, 0.4, 0.8, 1.6 and from then on
2 seconds. The actual wait is a random part of that, between half and all of it, so that programs
which lost the same server do not all come back at the same moment.
"""

from __future__ import annotations

import asyncio
import random

from eventmesh.clock import Clock

_MOST_COUNTED_FAILURES = 16  # 2**16 times `first` is beyond any limit, and far from an overflow


class Reconnect:
    """The waits between tries to reach one server: from `first` seconds, doubled up to `most`."""

    def __init__(self, clock: Clock, *, first: float = 0.1, most: float = 2.0) -> None:
        self._clock = clock
        self._first = first
        self._most = most
        self._failures = 0

    def succeeded(self) -> None:
        """The server answered: after the next failure, the wait is the shortest one again."""
        self._failures = 0

    async def wait(self, stopping: asyncio.Event | None = None) -> None:
        """Wait until the next try is due, or `stopping` is set if that is sooner."""
        longest = min(self._first * 2.0**self._failures, self._most)
        self._failures = min(self._failures + 1, _MOST_COUNTED_FAILURES)
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311  # jitter, not a secret
        if stopping is None:
            await self._clock.sleep(pause)
            return
        waits = [
            asyncio.ensure_future(self._clock.sleep(pause)),
            asyncio.ensure_future(stopping.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
