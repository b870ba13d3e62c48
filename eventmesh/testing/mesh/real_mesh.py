"""A mesh on real servers and in real time, for the same tests as the virtual one.

The workers run in the test's process. What only a world of our own can do raises NeedsVirtualTime:
letting days pass, and killing a worker between two of its steps. When nothing more can happen is
measured: no worker holds or awaits a message (see `traffic`), no outbox holds one that is due, and
the broker has none ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from eventmesh.clock import Clock, SystemClock
from eventmesh.duration import Duration, seconds
from eventmesh.errors import EventMeshError
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox.reading import next_due
from eventmesh.persistence.outbox.statistics import stats
from eventmesh.persistence.own_tables import require_own_tables
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings, load_settings
from eventmesh.testing.mesh.base import Mesh
from eventmesh.testing.mesh.broker import Record
from eventmesh.testing.mesh.databases import sharing
from eventmesh.testing.mesh.predicates import Predicates, Violation
from eventmesh.testing.mesh.real_servers import MeshServers
from eventmesh.testing.mesh.traffic import Traffic, watched
from eventmesh.testing.mesh.worker import WorkerProcess
from eventmesh.testing.virtual.process import Process
from eventmesh.transports.base import DeadLetter, Subscription, Transport
from eventmesh.transports.factory import make_transport
from eventmesh.transports.memory import MemoryBroker, MemoryTransport

LONGEST_WAIT = 30.0
"""Seconds that `advance` really waits; longer needs virtual time."""

LONGEST_HANDLING = 60.0
"""Seconds after which `quiet` says what is still going on."""

_PAUSE = 0.02
"""Seconds between two measurements."""

_MOST_DEAD_LETTERS = 1_000


class NeedsVirtualTime(EventMeshError):
    """The test does what is possible in virtual time only."""


class _Clock(SystemClock):
    """The machine's clock; `monotonic` counts from the beginning of the test."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()

    def monotonic(self) -> float:
        return time.monotonic() - self._began_at


class _ServerPredicates(Predicates):
    """Predicates that read from any database. They are asked within `greenlet_spawn`."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        super().__init__({})
        self._by_service = engines

    def _engine(self, service: str) -> Engine:
        return self._by_service[service]


class RealMesh(Mesh):
    """A mesh on these servers. It is opened before the test, and closed after it."""

    def __init__(self, servers: MeshServers) -> None:
        clock = _Clock()
        record = Record(clock)
        self._servers = servers
        self._broker = MemoryBroker()
        self._traffic = Traffic(clock, record)
        self._connections: list[Transport] = []
        self._engines: dict[str, Engine] = {}
        self._found_dead: dict[str, Sequence[DeadLetter]] = {}
        settings = load_settings().model_copy(
            update={"broker_url": servers.broker_url, "broker_prefix": servers.prefix}
        )
        super().__init__(
            clock,
            record,
            self._connection(clock, settings),
            settings,
            _ServerPredicates(self._engines),
        )

    def _connection(
        self, clock: Clock, settings: Settings, process: Process | None = None
    ) -> Transport:
        """A connection to the broker, not yet open."""
        connection: Transport = (
            MemoryTransport(clock, self._broker)
            if settings.broker_url == "memory://"
            else make_transport(settings.broker_url, clock, settings.transport_options)
        )
        self._connections.append(connection)
        return watched(connection, self._traffic, process)

    async def open(self) -> None:
        """Connect to the broker, on the event loop of the test."""
        self._own_loop = asyncio.get_running_loop()
        await self.transport.connect()

    async def kill(self, service: Service, number: int = 1) -> None:
        """Only virtual processes can be killed."""
        raise NeedsVirtualTime(
            f"kills a worker of {service.name}, which is a task of the test's own process here"
        )

    async def _close_own(self) -> None:
        for connection in self._connections:
            await connection.close()
        leftovers = self._servers.leftovers
        for service in self._configured_before:
            leftovers.subscriptions |= {
                each.subscription.name: each.subscription for each in service.worked
            }
        leftovers.messages |= {each.name for each in self.record.published.values()}
        leftovers.messages.update(
            *(each.registry.published_names() for each in self._configured_before)
        )
        leftovers.delays |= self._traffic.delays

    def dead_letters(self, service: Service | None = None) -> list[DeadLetter]:
        """The dead letters, as they were when the mesh was quiet last."""
        return [
            letter
            for name, letters in sorted(self._found_dead.items())
            if service is None or name in service.handlers
            for letter in letters
        ]

    # Time

    async def quiet(self) -> None:
        self._require_own_loop()
        began_at = self.clock.monotonic()
        calm_at: int | None = None
        while True:
            self._raise_ended()
            changes = self._traffic.changes
            going_on = await self._going_on()
            if not going_on and self._traffic.changes == changes == calm_at:
                break
            calm_at = None if going_on else changes
            if self.clock.monotonic() - began_at > LONGEST_HANDLING:
                raise AssertionError(
                    f"after {LONGEST_HANDLING:g} s this is still going on: "
                    f"{'; '.join(going_on) or 'messages come and go'}\n\n{self.story()}"
                )
            await asyncio.sleep(_PAUSE)
        self._found_dead = {
            each.name: await self.transport.dead_letters(each, limit=_MOST_DEAD_LETTERS)
            for each in self._subscriptions()
        }
        await self._ask(self.predicates.ask_after_write)

    async def advance(self, duration: Duration) -> None:
        self._require_own_loop()
        wait = seconds(duration)
        if wait > LONGEST_WAIT:
            raise NeedsVirtualTime(
                f"lets {duration} pass, and no more than {LONGEST_WAIT:g} s are waited for"
            )
        await asyncio.sleep(wait)
        await self.quiet()

    async def settle(self, within: Duration = "90d") -> None:
        until = self.clock.monotonic() + seconds(within)
        await self.quiet()
        while (wait := await self._next_due()) is not None:
            if self.clock.monotonic() + wait > until:
                raise AssertionError(
                    f"messages are still due after {within}; there may be no end to them."
                    f"\n\n{self.story()}"
                )
            await self.advance(wait)

    async def _going_on(self) -> list[str]:
        """What can still happen at this time, in words."""
        if found := self._traffic.going_on():
            return found
        for names, database in (await self._outboxes()).items():
            async with database.reading() as connection:
                counts = await stats(connection, await database.time.ask(connection))
            if counts.pending:
                found.append(f"the outbox of {' and '.join(names)} holds {counts.pending} messages")
        for subscription in self._subscriptions():
            if self._traffic.is_consumed(subscription.name) and (
                ready := (await self.transport.stats(subscription)).ready
            ):
                found.append(f"{subscription.name} has {ready} messages that wait")
        return found

    async def _next_due(self) -> float | None:
        """In how many seconds something becomes due that is not due now."""
        waits = [self._traffic.next_retry]
        for database in (await self._outboxes()).values():
            async with database.reading() as connection:
                now = await database.time.ask(connection)
                due = await next_due(connection, now)
            waits.append(None if due is None else max((due - now).total_seconds(), 0.0))
        return min((wait for wait in waits if wait is not None), default=None)

    async def _outboxes(self) -> dict[tuple[str, ...], Database]:
        """The databases of services whose workers run, each once, by these services."""
        names: dict[str, list[str]] = {}
        for name in sorted({worker.service.name for worker in self.workers}):
            names.setdefault(self.settings.database_url(name), []).append(name)
        return {
            tuple(several): await self._services[several[0]].database()
            for several in names.values()
        }

    def _subscriptions(self) -> list[Subscription]:
        return [handler.subscription for each in self.started for handler in each.worked]

    # State

    async def check_end(self, *, allows_dead_letters: bool) -> None:
        """Violation where something does not hold that must in the end, when all is quiet."""
        await self.quiet()
        found, cause = list[str](), None
        try:
            await self._ask(self.predicates.ask_at_end)
        except Violation as violation:
            found, cause = [str(violation)], violation.__cause__
        if cause is not None or not allows_dead_letters:  # as in a simulation
            found += [
                f"{each.subscription} has a dead letter of {self.record.label(each.envelope)}: "
                f"{each.reason}"
                for each in self.dead_letters()
            ]
        if found:
            raise Violation("\n".join(found)) from cause

    async def _ask(self, predicates: Callable[[], None]) -> None:
        for name, service in self._services.items():
            self._engines[name] = (await service.database()).engine.sync_engine
        await greenlet_spawn(predicates)

    # Services

    async def _make_databases(self, services: Sequence[Service]) -> Mapping[str, str]:
        urls: dict[str, str] = {}
        for group in sharing(services):
            url = await asyncio.to_thread(self._servers.new_database)
            for service in group:
                database = Database(url, service=service.name)
                try:
                    await migration.upgrade(database, service.metadata)
                    if service.metadata is not None:
                        await require_own_tables(database, service.metadata)
                finally:
                    await database.close()
                urls[service.name] = url
        return urls

    async def _start_worker(self, service: Service, number: int) -> WorkerProcess:
        process = Process(service.name, number)
        transport = self._connection(self.clock, self.settings, process)
        await transport.connect()
        database = Database(
            self.settings.database_url(service.name),
            service=service.name,
            connections=sum(handler.concurrency for handler in service.handlers.values()),
        )
        worker = WorkerProcess(
            service,
            process,
            transport,
            self.settings,
            self.clock,
            database,
            lambda _: None,
            is_checked=self._is_first_version(service),
        )
        self.workers.append(worker)
        return worker
