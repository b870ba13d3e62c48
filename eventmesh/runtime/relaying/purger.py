"""The purger: deletes from a service's database what has become too old to be needed.

These are inbox entries and begun deliveries older than the inbox window, sagas that ended before
the saga window, what reactions have recorded before the reaction window, and operators' actions
before the action window. Of all processes of a
service, the one whose relay holds the first bucket of the outbox does it, about once a minute, in
batches that nobody has to wait for.

Ages go by the database's clock, which has written the times. A process whose own clock differs from
it by more than a minute logs that and deletes nothing. One of the two is wrong, and if it is the
database's, everything might look old. People must find out which; purging can wait.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import counts, purge
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_time import clocks_differ
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.runtime.declaring.settings import Settings

FIRST_PURGE_AFTER = 5.0
"""Seconds: a process that starts has messages to see to first."""

PURGE_INTERVAL = 60.0
"""Seconds between two purges, at the most."""

BATCH = 1_000
"""How many rows are deleted at once."""

FOLDED_AFTER = timedelta(minutes=10)
"""How long a connection must have counted nothing for its counters to be folded into those of
nobody."""

PAUSE = 0.05
"""Seconds between two batches: 20,000 rows a second at the most, more than come in."""

_DELAYS = 1_000
"""How many delays of a retry policy are computed, to find the longest."""


class Purger:
    """Purges one service's database while `is_ours` says that it is this process's task."""

    def __init__(
        self, database: Database, clock: Clock, settings: Settings, is_ours: Callable[[], bool]
    ) -> None:
        self._database = database
        self._clock = clock
        self._windows = (
            (purge.RECEIVED, timedelta(seconds=settings.inbox_window)),
            (purge.BEGUN, timedelta(seconds=settings.inbox_window)),
            (purge.ENDED, timedelta(seconds=settings.saga_window)),
            (purge.REACTED, timedelta(seconds=settings.reaction_window)),
            (purge.ACTED, timedelta(seconds=settings.action_window)),
        )
        self._is_ours = is_ours
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.purger").bind(
            service=database.service
        )

    async def run(self) -> None:
        """Purge again and again, until cancelled."""
        await self._clock.sleep(FIRST_PURGE_AFTER)
        while True:
            try:
                with leaked_cancellations_raised():
                    await self.purge()
            except (Unreachable, LeakedCancellation) as error:
                self._log.warning("purge postponed", error=str(error))
            pause = PURGE_INTERVAL * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
            await self._clock.sleep(pause)

    async def purge(self) -> None:
        """Delete all that is too old now, batch by batch, unless the clocks differ; Unreachable."""
        now, oldest = await self._database.read(
            lambda connection: (self._database.time.read(connection), purge.oldest(connection))
        )
        difference = self._database.time.difference(self._clock.now())
        if problem := clocks_differ(difference, self._database.service):
            self._log.warning("clocks differ", problem=problem)
            return
        for age, window in self._windows:
            first = oldest[age]
            more = first is not None and first < now - window
            while more and self._is_ours():
                async with self._database.queue() as connection:
                    more = await purge.purge(connection, age, now - window, BATCH)
                if more:
                    await self._clock.sleep(PAUSE)
        if self._is_ours():
            await self._database.transact(
                lambda connection: counts.fold(connection, now - FOLDED_AFTER)
            )


def check_window(handlers: Iterable[Handler], settings: Settings) -> None:
    """UsageError where the inbox would forget a message while a copy of it waits for its retry.

    Copies come from relays and workers that were killed. Once one copy has taken effect, each other
    one is skipped when it is delivered next: after its retry's delay, or after the visibility
    timeout. By then the inbox must still remember the message.
    """
    for handler in handlers:
        longest = max(map(_longest_delay, (handler.retry, *handler.retry.per_error.values())))
        if settings.inbox_window <= longest + settings.visibility_timeout:
            raise UsageError(
                f"EVENTMESH_INBOX_WINDOW is {settings.inbox_window:g} s, but a copy of a message "
                f"for {handler.subscription.name} may be delivered again after "
                f"{longest + settings.visibility_timeout:g} s, and would take effect again. Make "
                f"the window longer than any copy may be on its way; a week is usual."
            )


def _longest_delay(policy: Retry) -> float:
    """Seconds of a policy's own back-off, without those of its `per_error`."""
    return max(map(policy.backoff, range(1, min(policy.attempts, _DELAYS))), default=0.0)
