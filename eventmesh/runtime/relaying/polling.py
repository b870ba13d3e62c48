"""When a relay reads the outbox next: at a wake-up, or after a pause.

A commit of this process wakes it, and on PostgreSQL a NOTIFY of another process. A round that finds
nothing also looks when the next delayed row is due, and the relay reads again then. What nothing
tells (rows of other processes where there is no NOTIFY) is found by polling: the pause is 10 ms
after a round that found something, or 0.1 s where NOTIFY arrives, and doubles up to 0.5 s while
there is nothing. After the first round, which finds nothing as a rule, it is 0.5 s.

A commit whose rows are handed over to the relay wakes it, too, but not for reading: that happens
when it would have happened otherwise, however many rows are handed over meanwhile.
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
        self._pause = LONGEST_PAUSE
        self._notified = False
        """Whether NOTIFY arrives from other processes."""
        self._woken = asyncio.Event()
        self._is_reading_wanted = True
        self._has_found_rows = False
        """Whether the last reading found rows."""
        self._read_at = 0.0
        """When the outbox is read at the latest, by the event loop's clock."""

    def wake(self) -> None:
        """Read the outbox now: somebody has committed to it."""
        self._is_reading_wanted = True
        self._woken.set()

    def wake_for_handover(self) -> None:
        """Begin a round now: there are rows that need not be read."""
        self._woken.set()

    @property
    def is_reading_due(self) -> bool:
        return self._pause_left() == 0

    def begin_round(self) -> None:
        """Whatever was handed over so far is for the round that begins."""
        self._woken.clear()

    def begin_reading(self) -> bool:
        """Whatever was committed so far will be seen by the reading that begins. Returns whether it
        is likely to find rows: somebody has committed some, or the last reading found some."""
        is_likely = self._is_reading_wanted or self._has_found_rows
        self._is_reading_wanted = self._has_found_rows = False
        return is_likely

    def found_rows(self, *, rows_left: bool) -> None:
        """A round has found rows, and more may come, so that the pause is short; `rows_left` are
        due again before long."""
        self._has_found_rows = True
        told = self._notified and not rows_left
        self._pause = NOTIFIED_PAUSE if told else SHORTEST_PAUSE

    def plan_reading(self, next_due_in: float | None = None) -> None:
        """The outbox has been read. Read it again after the pause, or when the next delayed row is
        due."""
        pause = self._pause if next_due_in is None else min(self._pause, next_due_in)
        self._read_at = asyncio.get_running_loop().time() + pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def read_within(self, seconds: float) -> None:
        """Read the outbox in so many seconds at the latest: a row is due then."""
        self._read_at = min(self._read_at, asyncio.get_running_loop().time() + seconds)

    async def wait(self) -> None:
        """Wait until a reading is due, or for a wake-up."""
        due = asyncio.get_running_loop().call_later(self._pause_left(), self._woken.set)
        try:
            await self._woken.wait()
        finally:
            due.cancel()

    def _pause_left(self) -> float:
        if self._is_reading_wanted:
            return 0.0
        return max(0.0, self._read_at - asyncio.get_running_loop().time())

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
