"""Relays that can be killed or paused at any of their steps while the test goes on.

Several run in one process, on one `VirtualLoop`; a kill or a pause stops all steps of one of them.
"""

from __future__ import annotations

import asyncio
import contextvars
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
from tests.crash.crash_points import CURRENT_RUN, Point, WorkerRun
from tests.crash.faulty_broker import FaultyBroker, FaultyTransport
from tests.crash.virtual_loop import VirtualLoop, close_connections

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
        self.run.kill = len(self.run.points) + steps
        await _until(lambda: self.run.dead)
        if not self.run.dead:
            self.run.dead = True
            close_connections(self.run)

    async def pause(self, steps: int) -> None:
        """Pause it at the n-th of its next steps, until it is resumed and at least until its leases
        have expired. An open transaction is finished first: it would lock the file for all."""
        self.run.on_point = self._pause_at(len(self.run.points) + steps)
        await _until(lambda: self.run.paused)
        self.run.on_point = lambda _: None
        if self.run.paused:
            await asyncio.sleep(LEASE_TIME)

    def _pause_at(self, number: int) -> Callable[[Point], None]:
        run = self.run

        def pause_here(_point: Point) -> None:
            run.paused = len(run.points) >= number and not any(
                map(_in_transaction, run.connections)
            )

        return pause_here

    async def shut_down(self) -> None:
        """Shut down in an orderly way, even after a kill."""
        self.run.dead, self.run.kill = False, None
        self.resume()
        self.task.cancel()
        await asyncio.wait([self.task])
        with suppress(asyncio.CancelledError, Exception):  # its files are closed
            self.task.result()
        with suppress(Exception):
            await self.database.close()

    def resume(self) -> None:
        _loop().resume(self.run)


def start(file: str, clock: Clock, memory: MemoryTransport, broker: FaultyBroker) -> KillableRelay:
    """Start to relay the outbox in this file."""
    run = WorkerRun(exits=False)
    loop = _loop()
    loop.runs.append(run)
    context = contextvars.copy_context()
    context.run(CURRENT_RUN.set, run)

    def may(envelope: Envelope) -> bool:
        return holds(file, relay.leases.owner, bucket_of(envelope.key, envelope.id))

    database = Database(f"sqlite:///{file}", service="shop")
    relay = Relay("shop", database, FaultyTransport(clock, memory, broker, may), clock, LEASE_TIME)
    task = loop.create_task(relay.run(asyncio.Event()), context=context)
    return KillableRelay(file, run, relay, database, task)


def holds(file: str, owner: str, bucket: int) -> bool:
    """Whether this relay has an unexpired lease of this bucket."""
    statement = "SELECT owner FROM eventmesh_lease WHERE bucket = ? AND expires_at > ?"
    return query(file, statement, bucket, f"{_loop().date():%Y-%m-%d %H:%M:%S.%f}") == [(owner,)]


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
    until = _loop().time() + _SOON
    while not true() and _loop().time() < until:  # noqa: ASYNC110  # there is nothing to await
        await asyncio.sleep(_LOOK_INTERVAL)


def _in_transaction(connection: Any) -> bool:
    try:
        return bool(connection.in_transaction)
    except sqlite3.ProgrammingError:  # it is closed
        return False


def _loop() -> VirtualLoop:
    loop = asyncio.get_event_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
