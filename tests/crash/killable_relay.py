"""Relays that can be killed or paused at any of their steps while the test goes on.

Several run in one process, on one virtual loop; a kill or a pause stops all steps of one of them.
The testing kit kills whole workers; here a relay runs alone, so that a test decides when messages
are delivered.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from eventmesh.clock import Clock
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import bucket_of
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope
from tests.crash.crash_points import Point, WorkerRun, the_loop
from tests.crash.faulty_broker import FaultyBroker, FaultyTransport

LEASE_TIME = 3.0

_LOOK_INTERVAL = 0.01
_SOON = 1.0
"""Seconds within which a relay takes its next step if there is anything to do."""


@dataclass(eq=False)
class KillableRelay:
    """A relay that is killed or paused like a process of its own."""

    file: str
    run: WorkerRun
    relay: Relay
    database: Database
    task: asyncio.Task[None]

    async def kill(self, steps: int) -> None:
        """Kill it at the n-th of its next steps, or now if it has no more to take."""
        self.run.kill_at = len(self.run.points) + steps
        await _until(lambda: self.run.is_dead)
        if not self.run.is_dead:
            self.run.kill()

    async def pause(self, steps: int) -> None:
        """Pause it at the n-th of its next steps, until it is resumed and at least until its leases
        have expired. An open transaction is finished first: it would lock the file for all."""
        self.run.on_point = self._pause_at(len(self.run.points) + steps)
        await _until(lambda: self.run.is_paused)
        self.run.on_point = lambda _: None
        if self.run.is_paused:
            await asyncio.sleep(LEASE_TIME)

    def _pause_at(self, number: int) -> Callable[[Point], None]:
        run = self.run

        def pause_here(_point: Point) -> None:
            if len(run.points) >= number and not run.connections:  # those in a transaction
                run.pause()

        return pause_here

    async def shut_down(self) -> None:
        """Shut down in an orderly way, even after a kill."""
        self.run.disturbances = None
        self.run.resume()
        self.run.revive()
        self.task.cancel()
        await asyncio.wait([self.task])
        with suppress(asyncio.CancelledError, Exception):  # its files are closed
            self.task.result()
        with suppress(Exception):
            await self.database.close()


def start(file: str, clock: Clock, memory: MemoryTransport, broker: FaultyBroker) -> KillableRelay:
    """Start to relay the outbox in this file."""
    run = WorkerRun(exits=False)

    def may(envelope: Envelope) -> bool:
        return holds(file, relay.leases.owner, bucket_of(envelope.key, envelope.id))

    database = Database(f"sqlite:///{file}", service="shop")
    relay = Relay("shop", database, FaultyTransport(clock, memory, broker, may), clock, LEASE_TIME)
    task = the_loop().create_task(relay.run(asyncio.Event()), context=run.context())
    return KillableRelay(file, run, relay, database, task)


def holds(file: str, owner: str, bucket: int) -> bool:
    """Whether this relay has an unexpired lease of this bucket."""
    statement = "SELECT owner FROM eventmesh_lease WHERE bucket = ? AND expires_at > ?"
    return query(file, statement, bucket, f"{the_loop().date():%Y-%m-%d %H:%M:%S.%f}") == [(owner,)]


def query(file: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """The rows in the file, read past the code under test."""
    connection = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


async def shut_down_all(relays: Sequence[KillableRelay]) -> None:
    for each in relays:
        await each.shut_down()


async def _until(true: Callable[[], bool]) -> None:
    """Poll until this holds, for _SOON at most."""
    until = the_loop().time() + _SOON
    while not true() and the_loop().time() < until:  # noqa: ASYNC110  # there is nothing to await
        await asyncio.sleep(_LOOK_INTERVAL)
