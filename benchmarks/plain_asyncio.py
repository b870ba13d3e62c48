"""The planted bugs under a simulator of plain asyncio programs, detangle 0.1.0.

It owns the event loop: it chooses which task goes on, and how late timers fire, and can cancel a
task at one of its next awaits. It knows nothing of processes, databases or brokers. So the programs
get what they need from us: EventMesh's broker in memory, SQLite on its loop, its virtual time as
their clock, and our predicates and checks at the end. Each statement, and each batch that is
published, takes a millisecond and as much longer as detangle likes, so that calls of two workers
end in any order.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import detangle
from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_dbapi
from sqlalchemy.util import await_only

from eventmesh.duration import Duration, seconds
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import load_settings
from eventmesh.testing.mesh.base import Mesh
from eventmesh.testing.mesh.broker import Record
from eventmesh.testing.mesh.databases import Workshop, sharing, url_of
from eventmesh.testing.mesh.effects import Effects
from eventmesh.testing.mesh.logs import taken_by
from eventmesh.testing.mesh.predicates import Predicates, Violation
from eventmesh.testing.mesh.real_mesh import RealMesh
from eventmesh.testing.mesh.traffic import Traffic, watched
from eventmesh.testing.mesh.worker import WorkerProcess
from eventmesh.testing.simulation.checks import check_end
from eventmesh.testing.virtual.clock import Ids
from eventmesh.testing.virtual.loop import BEGINNING
from eventmesh.testing.virtual.process import CURRENT_PROCESS, Process
from eventmesh.testing.virtual.sqlite import KeptConnections, _Connection
from eventmesh.transports.base import PublishResult
from eventmesh.transports.memory import MemoryBroker, MemoryTransport
from eventmesh.wire.envelope import Envelope

CALL = 0.001
"""Seconds of a call to a database or broker."""

LATE = 0.05
"""Seconds by which timers, and so calls, may be late."""

MOST_STEPS = 200_000
"""Of one run, as is its default; a run that takes more is not a finding here."""

VICTIMS, AWAITS = 60, 12
"""In a run with a cancellation, it is that of one of the first tasks of the workers, at one of its
first awaits."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one exploration: the violation, if one was found."""

    runs: int
    cpu_seconds: float
    found: str
    others: Counter[str]
    """What else ended runs, by kind."""


class World:
    """What our SQLite connections ask of a loop."""

    def __init__(self) -> None:
        self.changes = Counter[str]()
        self.on_write: Callable[[str], None] = lambda _: None

    def date(self) -> datetime:
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())


class LoopClock:
    def __init__(self, world: World, ids: Ids) -> None:
        self._world, self._ids = world, ids

    def now(self) -> datetime:
        return self._world.date()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, duration: float) -> None:
        await asyncio.sleep(duration)

    def new_id(self) -> str:
        return self._ids.new(self.now())


class _SlowConnection(_Connection):
    """A connection whose calls take time."""

    __slots__ = ()

    def _call(self, name: str, work: Callable[[], Any]) -> Any:
        await_only(asyncio.sleep(CALL))
        return super()._call(name, work)


class _SlowTransport(MemoryTransport):
    """A broker whose calls take time."""

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        await asyncio.sleep(CALL)
        return await super().publish(envelopes)


class _Servers:
    """A real mesh's servers: there are none."""

    broker_url = "memory://"
    prefix = ""


class PlainMesh(RealMesh):
    """A mesh on any event loop. Workers cannot be killed; one that ends from a cancellation is
    started again."""

    def __init__(self, workshop: Workshop, world: World) -> None:
        self._clock = LoopClock(world, Ids())
        self._paths: dict[str, Path] = {}
        self._servers: Any = _Servers()
        self._broker = MemoryBroker()
        self._workshop = workshop
        record = Record(self._clock)
        self._traffic = Traffic(self._clock, record)
        self._connections: list[Any] = []
        self._found_dead = {}
        self._restarting: list[asyncio.Task[None]] = []
        self.effects = Effects()
        settings = load_settings().model_copy(update={"broker_url": "memory://"})
        Mesh.__init__(
            self,
            self._clock,
            record,
            watched(MemoryTransport(self._clock, self._broker), self._traffic),
            settings,
            Predicates(self._paths, workshop.engines_of_predicates),
        )
        world.on_write = self._after_write

    @property
    def processes(self) -> list[Process]:
        return [each.process for each in [*self.workers, *self._dead]]

    def look(self, statement: str) -> Iterator[tuple[Path, Sequence[Any]]]:
        """As of the mesh in virtual time, for the checks at the end."""
        for path in dict.fromkeys(self._paths.values()):
            found = self._workshop.connections.plain(str(path)).execute(statement).fetchall()
            yield from ((path, row) for row in found)

    def _after_write(self, _server: str) -> None:
        if self._ended_by is None:
            try:
                self.predicates.ask_after_write()
            except Violation as violation:
                self._ended_by = violation

    async def advance(self, duration: Duration) -> None:
        await asyncio.sleep(seconds(duration))
        await self.quiet()

    async def _ask(self, predicates: Callable[[], None]) -> None:
        predicates()

    def _raise_ended(self) -> None:
        for worker in [*self.workers]:
            if worker.task.done():
                self.workers.remove(worker)
                self._dead.append(worker)
                service = self._services[worker.service.name]
                self._restarting.append(asyncio.ensure_future(self.restart(service)))
        super()._raise_ended()

    async def _close_own(self) -> None:
        self.predicates.close()

    async def _make_databases(self, services: Sequence[Service]) -> Mapping[str, str]:
        for group in sharing(services):
            path = self._workshop.now / f"{group[0].name}.db"
            await self._workshop.write(group, path)
            self._paths |= {service.name: path for service in group}
        return {name: url_of(path) for name, path in self._paths.items()}

    async def _start_worker(self, service: Service, number: int) -> WorkerProcess:
        process = Process(service.name, number)
        transport = _SlowTransport(self._clock, self._broker)
        url = self.settings.database_url(service.name)
        worker = WorkerProcess(
            service,
            process,
            watched(transport, self._traffic, process),
            self.settings,
            self._clock,
            await self._workshop.database(url, service, process.name),
            self.effects.watch,
            is_checked=True,
        )
        self.workers.append(worker)
        return worker


@contextmanager
def sqlite_on_any_loop(world: World, kept: KeptConnections) -> Iterator[None]:
    """While the context is open, SQLAlchemy's connections to SQLite run where they are called."""
    connect = AsyncAdapt_aiosqlite_dbapi.connect

    def connect_here(self: Any, *args: Any, **options: Any) -> Any:
        return _SlowConnection(self, world, *args, kept=kept, **options)  # type: ignore[arg-type]

    AsyncAdapt_aiosqlite_dbapi.connect = connect_here  # type: ignore[method-assign]
    try:
        yield
    finally:
        AsyncAdapt_aiosqlite_dbapi.connect = connect  # type: ignore[method-assign]


def explore(
    module: ModuleType,
    program: Service,
    workshop: Workshop,
    cpu_seconds: float,
    *,
    with_cancellation: bool,
) -> Tried:
    """Explore one program for so long, or until its bug is found."""
    others, runs = Counter[str](), 0

    async def once() -> None:
        nonlocal runs
        runs += 1
        if time.process_time() > until:
            raise TimeIsOver
        world = World()
        with ExitStack() as stack:
            stack.enter_context(workshop.mesh())
            stack.enter_context(taken_by(lambda *_: None))
            stack.enter_context(sqlite_on_any_loop(world, workshop.connections))
            if with_cancellation:
                _mark_a_victim()
            mesh = PlainMesh(workshop, world)
            try:
                await _whole(mesh, module, program)
            except (Violation, TimeIsOver):
                raise
            except Exception as error:  # noqa: BLE001  # not the planted bug: counted, not hidden
                others[type(error).__name__] += 1
            finally:
                await _close(mesh)

    began_at = time.process_time()
    until = began_at + cpu_seconds
    found = ""
    while not found and time.process_time() < until:
        try:
            detangle.explore(
                once,
                runs=10_000,
                seed=1 + runs,
                shrink=False,
                database=False,
                timer_jitter=LATE,
                max_steps=MOST_STEPS,
                fail_on_unobserved=False,
                fail_on_callback_error=False,
            )
        except detangle.BugFound as bug:
            failure = bug.report.failure
            if isinstance(failure.exception, Violation):
                found = str(failure.exception)
            elif not isinstance(failure.exception, TimeIsOver):
                others[failure.kind] += 1
    return Tried(runs, time.process_time() - began_at, found, others)


class TimeIsOver(Exception):
    """The exploration has had its time."""


async def _whole(mesh: PlainMesh, module: ModuleType, program: Service) -> None:
    await module.body(mesh, program)
    await mesh.settle()
    everyone = {process.service for process in mesh.processes}
    await check_end(mesh, everyone, allows_dead_letters=False, audits=False)  # type: ignore[arg-type]


async def _close(mesh: PlainMesh) -> None:
    for worker in mesh.workers:
        worker.task.cancel()
    await asyncio.wait([worker.task for worker in mesh.workers])
    for service in mesh._services.values():
        await service.close()
        service._settings, service.clock = mesh._configured_before[service]
    mesh.predicates.close()


def _mark_a_victim() -> None:
    """Let one task of the workers be cancelled at one of its first awaits."""
    loop: Any = asyncio.get_running_loop()
    victim, count = detangle.randint(1, VICTIMS), 0

    def make(
        loop: Any, coroutine: Any, context: contextvars.Context | None = None, **options: Any
    ) -> asyncio.Task[Any]:
        nonlocal count
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context, **options)
        process = (context or contextvars.copy_context()).get(CURRENT_PROCESS)
        if process is not None:
            count += 1
            if count == victim:
                detangle.inject_cancellation(task, AWAITS)
        return task

    loop.set_task_factory(make)
