"""When a relay reads the outbox next: at a wake-up, or after a pause.

A commit of this process wakes it, and on PostgreSQL a NOTIFY of another process. A round that finds
nothing also looks when the next delayed row is due, and the relay reads again then. What nothing
tells (rows of other processes where there is no NOTIFY) is found by polling: the pause is 10 ms
after a round that found something, or 0.1 s where NOTIFY arrives, and doubles up to 0.5 s while
there is nothing.
"""

from __future__ import annotations

import asyncio

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence import notifications
from eventmesh.persistence.database import Database
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised

SHORTEST_PAUSE, LONGEST_PAUSE = 0.01, 0.5  # seconds
NOTIFIED_PAUSE = 0.1
"""Seconds until the round after one that found rows, where NOTIFY arrives. That round finds nothing
as a rule, but then knows when the next delayed row is due."""


class Polling:
    """Wakes one relay."""

    def __init__(self, database: Database, clock: Clock, log: structlog.stdlib.BoundLogger) -> None:
        self._database = database
        self._clock = clock
        self._log = log
        self._pause = SHORTEST_PAUSE
        self._notified = False
        """Whether NOTIFY arrives from other processes."""
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Read the outbox now: somebody has committed to it."""
        self._woken.set()

    def begin_round(self) -> None:
        """Whatever was committed so far will be seen by the round that begins."""
        self._woken.clear()

    def shorten_pause(self, *, rows_left: bool) -> None:
        """A round has found rows, and more may come; `rows_left` are due again before long."""
        told = self._notified and not rows_left
        self._pause = NOTIFIED_PAUSE if told else SHORTEST_PAUSE

    async def wait(self, stopping: asyncio.Event, next_due_in: float | None = None) -> None:
        """Wait for a wake-up, for the end of the pause or the next delayed row, or for
        `stopping`."""
        pause = self._pause if next_due_in is None else min(self._pause, next_due_in)
        waits = [asyncio.ensure_future(event.wait()) for event in (self._woken, stopping)]
        try:
            await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def listen(self) -> None:
        """Let NOTIFY of other processes wake the relay, until cancelled; returns where the database
        has no NOTIFY, or does not pass it on."""

        def notified() -> None:
            self._notified = True
            self.wake()

        reconnect = Reconnect(self._clock)
        while self._database.dialect.can_notify:
            try:
                with leaked_cancellations_raised():
                    await notifications.listen(self._database, notified)
            except (Unreachable, LeakedCancellation):  # the rounds log it
                self._notified = False
                await reconnect.wait()
            else:
                self._log.warning(f"LISTEN/NOTIFY unavailable; polling every {LONGEST_PAUSE:g} s")
                return
