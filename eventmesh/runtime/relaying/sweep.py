"""The sweep: looks behind the watermark for rows that rounds no longer read.

There should be none. But a transaction may commit more than 30 s after it wrote, or somebody may
restore rows. The sweep runs beside the rounds, which do not wait for it, because it may have to
scan many dead rows; it takes at most a twentieth of the time, and a second apart at the least.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence import outbox
from eventmesh.persistence.database import Connection, Database
from eventmesh.persistence.outbox import START, Position
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.relaying.held_leases import HeldLeases
from eventmesh.runtime.relaying.watermark import Watermark

SWEEP_INTERVAL = 1.0
"""Seconds between two sweeps, at the least."""

_TIME_SHARE = 20  # a sweep takes one part in this many of the time, at the most


class Sweep:
    """Sweeps for one relay: has it read all again where there is something."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        leases: HeldLeases,
        watermark: Watermark,
        read_all: Callable[[], None],
    ) -> None:
        self._database = database
        self._clock = clock
        self._leases = leases
        self._watermark = watermark
        self._read_all = read_all

    async def run(self) -> None:
        """Sweep again and again, until cancelled."""
        pause = SWEEP_INTERVAL
        while True:
            await self._clock.sleep(pause)
            began_at = self._clock.monotonic()
            # If it fails, so does the next round, which logs it.
            with suppress(Unreachable, LeakedCancellation), leaked_cancellations_raised():
                await self.once()
            pause = max(SWEEP_INTERVAL, _TIME_SHARE * (self._clock.monotonic() - began_at))

    async def once(self) -> None:
        """Look behind the watermark once; Unreachable."""
        passed = self._watermark.position
        if passed == START:
            return
        if await self._database.read_queue(lambda connection: self._is_any_due(connection, passed)):
            self._read_all()

    def _is_any_due(self, connection: Connection, passed: Position) -> bool:
        now, buckets = self._database.time.recent(connection), self._leases.buckets
        return bool(outbox.due(connection, buckets, now, 1, passed, up_to=True))
