"""Relays that can be killed, or stand still, at any of their steps, while the test goes on."""

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
from tests.crash.fickle import Broker, Wire
from tests.crash.points import LIFE, Life, Point
from tests.crash.virtual_loop import VirtualLoop, bury

LEASE_TIME = 3.0

_LOOK_INTERVAL = 0.01
_SOON = 1.0
"""Seconds in which a relay makes its next steps, if there is anything to do."""


@dataclass(eq=False)
class Running:
    """A relay in a process of its own, as it were."""

    file: str
    life: Life
    relay: Relay
    database: Database
    task: asyncio.Task[None]

    async def kill(self, steps: int) -> None:
        """At the so-manieth of its next steps, or between two, if it makes fewer."""
        self.life.kill = len(self.life.points) + steps
        await _until(lambda: self.life.dead)
        if not self.life.dead:
            self.life.dead = True
            bury(self.life)

    async def stand_still(self, steps: int) -> None:
        """From the so-manieth of its next steps on, until it is resumed, and at least until others
        may have its leases. In a transaction it would keep all others from writing, so that it ends
        one that it has begun."""
        self.life.on_point = self._pause_at(len(self.life.points) + steps)
        await _until(lambda: self.life.paused)
        self.life.on_point = lambda _: None
        if self.life.paused:
            await asyncio.sleep(LEASE_TIME)

    def _pause_at(self, number: int) -> Callable[[Point], None]:
        life = self.life

        def pause(_point: Point) -> None:
            life.paused = len(life.points) >= number and not any(
                map(_in_transaction, life.connections)
            )

        return pause

    async def end(self) -> None:
        """In an orderly way, also what was killed."""
        self.life.dead, self.life.kill = False, None
        self.resume()
        self.task.cancel()
        await asyncio.wait([self.task])
        with suppress(asyncio.CancelledError, Exception):  # of what was killed, files are closed
            self.task.result()
        with suppress(Exception):
            await self.database.close()

    def resume(self) -> None:
        _loop().resume(self.life)


def start(file: str, clock: Clock, memory: MemoryTransport, behaves: Broker) -> Running:
    """Begin to relay the outbox in this file."""
    life = Life(exits=False)
    loop = _loop()
    loop.lives.append(life)
    context = contextvars.copy_context()
    context.run(LIFE.set, life)

    def may(envelope: Envelope) -> bool:
        return holds(file, relay.tenure.owner, bucket_of(envelope.key, envelope.id))

    database = Database(f"sqlite:///{file}", service="shop")
    relay = Relay("shop", database, Wire(clock, memory, behaves, may), clock, LEASE_TIME)
    task = loop.create_task(relay.run(asyncio.Event()), context=context)
    return Running(file, life, relay, database, task)


def holds(file: str, owner: str, bucket: int) -> bool:
    """Whether this relay has the lease of this bucket, and still has."""
    statement = "SELECT owner FROM eventmesh_lease WHERE bucket = ? AND expires_at > ?"
    return ask(file, statement, bucket, f"{_loop().date():%Y-%m-%d %H:%M:%S.%f}") == [(owner,)]


def ask(file: str, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What the file answers, past all that is under test."""
    connection = sqlite3.connect(file, isolation_level=None, timeout=0)
    try:
        connection.execute("PRAGMA synchronous = OFF")
        return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


async def end_all(relays: Sequence[Running]) -> None:
    for each in relays:
        await each.end()


async def _until(true: Callable[[], bool]) -> None:
    """Wait for this, unless it takes too long."""
    until = _loop().time() + _SOON
    while not true() and _loop().time() < until:  # noqa: ASYNC110  # nobody tells of it
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
