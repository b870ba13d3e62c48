"""The time by a database's own clock, as a process knows it.

All processes of a service share their database, but each machine has a clock of its own, which may
be wrong by days. So whatever decides about effects goes by the database's clock: when a message was
received, when a delayed one is due, what is old enough to be purged.

Asking costs a round trip. Between two answers the process adds the time that has passed since the
last one by the event loop's monotonic clock. Unless the database's clock is set back in between,
the result is never ahead of it, so nothing is due early, and it is behind by at most the time that
an answer takes to arrive. For example:

    the database answers 12:00:00.000, which arrives 3 ms later     we assume 12:00:00.000
    0.5 s later                                                      12:00:00.500, really .503
    1.0 s after the answer                                           we ask again
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.sql import database_now

ASK_AGAIN_AFTER = 1.0
"""Seconds for which an answer is used. A machine that was suspended notices after that."""

MOST_DIFFERENCE = 60.0
"""Seconds by which the clocks of a process and its database may differ before we report one of them
as wrong. Clocks that are synchronised at all differ by far less."""

_NOW = select(database_now())


class DatabaseTime:
    """The time by one database's clock."""

    def __init__(self) -> None:
        self._answer: datetime | None = None
        self._answered_at = 0.0

    async def ask(self, connection: AsyncConnection) -> datetime:
        """Ask the database for the time, on this connection."""
        return await connection.run_sync(self.read)

    def read(self, connection: Connection) -> datetime:
        """As `ask`."""
        answer: datetime = connection.execute(_NOW).scalar_one()
        self._answer, self._answered_at = answer, asyncio.get_running_loop().time()
        return answer

    def recent(self, connection: Connection) -> datetime:
        """The time; the database is asked again if its last answer is older than ASK_AGAIN_AFTER
        seconds."""
        if self._answer is None or self._since_answer() > ASK_AGAIN_AFTER:
            return self.read(connection)
        return self.now()

    @property
    def is_known(self) -> bool:
        """Whether the database has been asked, which a relay does in its first round."""
        return self._answer is not None

    def now(self) -> datetime:
        """The time by the last answer and what has passed since; RuntimeError before the first."""
        if self._answer is None:
            raise RuntimeError("the database has not been asked for its time yet")
        return self._answer + timedelta(seconds=self._since_answer())

    def difference(self, now: datetime) -> float:
        """By how many seconds a clock that shows `now` is ahead of the database's; negative if it
        is behind."""
        return (now - self.now()).total_seconds()

    def _since_answer(self) -> float:
        return asyncio.get_running_loop().time() - self._answered_at


def clocks_differ(difference: float, service: str) -> str:
    """A sentence for people about a process whose clock is so many seconds ahead of the database's;
    empty while that is within MOST_DIFFERENCE."""
    if abs(difference) <= MOST_DIFFERENCE:
        return ""
    side = "ahead of" if difference > 0 else "behind"
    return (
        f"the clock of this machine is {abs(difference):,.0f} s {side} that of the database of "
        f"service {service}; nothing is purged until they agree within {MOST_DIFFERENCE:g} s. Set "
        f"the one that is wrong, for example by NTP"
    )
