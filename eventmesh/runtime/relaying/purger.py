"""Who clears away what is of no more use, and what is not yet: of all processes of a service, the
relay that holds the first bucket of the outbox does it.

How old a row is goes by the database's clock, by which it was written. A process whose own clock is
wrong says so and clears nothing: what else it may have wrong, such as a database whose clock it is
that is wrong, is for people to find out, and purging can wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import purge
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_time import clocks_differ
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.settings import Settings

EVERY = 60.0
"""Seconds between two looks at what has grown too old."""

BATCH = 1_000
"""How many rows are deleted at once."""

PAUSE = 0.05
"""Seconds between two batches: 20,000 rows a second at the most, more than come in."""

_DELAYS = 1_000
"""How many of a handler's delays are looked at, to find the longest."""


class Purger:
    """Clears one service's database for as long as `mine` says that it is this process's task."""

    def __init__(
        self, database: Database, clock: Clock, settings: Settings, mine: Callable[[], bool]
    ) -> None:
        self._database = database
        self._clock = clock
        self._windows = (
            (purge.RECEIVED, timedelta(seconds=settings.inbox_window)),
            (purge.BEGUN, timedelta(seconds=settings.inbox_window)),
            (purge.ENDED, timedelta(seconds=settings.saga_window)),
        )
        self._mine = mine
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.purger").bind(
            service=database.service
        )

    async def run(self) -> None:
        """Clear again and again, until cancelled."""
        while True:
            try:
                with leaked_cancellations_raised():
                    await self._clear_or_say_why_not()
            except (Unreachable, LeakedCancellation) as error:
                self._log.warning("not purged, will be tried again", error=str(error))
            await self._clock.sleep(EVERY * random.uniform(0.5, 1.0))  # noqa: S311  # no secret

    async def _clear_or_say_why_not(self) -> None:
        if problem := await self.clock_problem():
            self._log.warning("clocks differ", problem=problem)
        else:
            await self.clear()

    async def clock_problem(self) -> str:
        """Why nothing may be purged now, in words for people; empty where it may. Unreachable."""
        async with self._database.reading() as connection:
            await self._database.time.ask(connection)
        difference = self._database.time.difference(self._clock.now())
        return clocks_differ(difference, self._database.service)

    async def clear(self) -> None:
        """Delete all that is too old now, batch by batch; Unreachable."""
        async with self._database.reading() as connection:
            now = await self._database.time.ask(connection)
        for age, window in self._windows:
            more = True
            while more and self._mine():
                async with self._database.queue() as connection:
                    more = await purge.purge(connection, age, now - window, BATCH)
                if more:
                    await self._clock.sleep(PAUSE)


def check_window(handlers: Iterable[Handler], settings: Settings) -> None:
    """UsageError where a message could be forgotten while a copy of it waits to be tried again.

    Copies come from a relay or a worker that was killed. Once one of them has taken effect, each
    other is passed over when it comes next, which is after its retry's delay, or after the
    visibility timeout.
    """
    for handler in handlers:
        delays = range(1, min(handler.retry.attempts, _DELAYS))
        longest = max(map(handler.retry.backoff, delays), default=0.0)
        if settings.inbox_window <= longest + settings.visibility_timeout:
            raise UsageError(
                f"EVENTMESH_INBOX_WINDOW is {settings.inbox_window:g} s, but a copy of a message "
                f"for {handler.subscription.name} may come back after "
                f"{longest + settings.visibility_timeout:g} s, and would take effect again. Make "
                f"it longer than any copy may be on its way; a week is usual."
            )
