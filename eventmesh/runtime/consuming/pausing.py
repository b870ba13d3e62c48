"""Pauses: subscriptions that operators do not want to be consumed for a while.

`eventmesh pause` writes a row into the service's database. A worker reads these rows before it
consumes anything, and then every two seconds, and turns the switch of each of its subscriptions (so
does a FastStream app, whose subscriptions keep the next message in hand until they are resumed). A
subscription that is paused finishes the messages that it began, gives back the others, and leaves
the broker, which keeps what waits; so the broker knows nothing of pauses, and all brokers have
them. While the database does not answer, the switches stay as they are. A service without a
database has no place for pauses, so its subscriptions always run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence import pauses
from eventmesh.persistence.pauses import Pause
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.outage_log import OutageLog

READ_INTERVAL = 2.0
"""Seconds between two looks at the pauses."""


class PauseSwitch:
    """Whether one subscription may be consumed; at first it may."""

    def __init__(self) -> None:
        self.pause: Pause | None = None
        """Who has paused it, and why; None while it may be consumed."""
        self.on = asyncio.Event()
        """Set while it may be consumed."""
        self.off = asyncio.Event()
        """Set while it may not."""
        self.on.set()

    def turn(self, pause: Pause | None) -> None:
        """Set it to what was read last."""
        self.pause = pause
        now, before = (self.on, self.off) if pause is None else (self.off, self.on)
        before.clear()
        now.set()


class PauseWatch:
    """Turns the switches of one service; `switches` are by the names of subscriptions, and may be
    of other services, too."""

    def __init__(self, service: Service, switches: Mapping[str, PauseSwitch], clock: Clock) -> None:
        self._service = service
        self._switches = {
            name: switch for name, switch in switches.items() if name in service.handlers
        }
        self._clock = clock
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.worker").bind(
            service=service.name
        )

    async def begin(self, stopping: asyncio.Event) -> None:
        """Return once the pauses have been read, however long the database is away, or at
        `stopping`. Nothing is consumed before, because it may be paused."""
        reconnect, outage = Reconnect(self._clock), OutageLog(self._clock, self._log)
        while not stopping.is_set():
            try:
                with leaked_cancellations_raised():
                    await self.read()
                break
            except (Unreachable, LeakedCancellation) as error:
                outage.failed("worker waiting for database", error)
                await reconnect.wait(stopping)

    async def run(self) -> None:
        """Read the pauses again and again, until cancelled."""
        while True:
            await self._clock.sleep(READ_INTERVAL)
            try:
                with leaked_cancellations_raised():
                    await self.read()
            except (Unreachable, LeakedCancellation) as error:
                self._log.debug("pauses not read", error=str(error))

    async def read(self) -> None:
        """Read the pauses once; Unreachable."""
        database = await self._service.database()
        found = await database.read(pauses.paused)
        for name, switch in self._switches.items():
            switch.turn(found.get(name))
