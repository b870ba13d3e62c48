"""When a relay reads the outbox next: at a wake-up, or after a pause.

A commit of this process wakes it, and on PostgreSQL a NOTIFY of another process. What neither tells
(delayed rows that become due, other processes where there is no NOTIFY) is found by polling: the
pause is 10 ms after a round that found something, and doubles up to 0.5 s while there is nothing.
Where NOTIFY arrives, 0.5 s is the pause from the start.
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
        self._pause = LONGEST_PAUSE if told else SHORTEST_PAUSE

    async def wait(self, stopping: asyncio.Event) -> None:
        """Wait for a wake-up, for the end of the pause, or for `stopping`."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._woken, stopping)]
        try:
            await asyncio.wait(waits, timeout=self._pause, return_when=asyncio.FIRST_COMPLETED)
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
