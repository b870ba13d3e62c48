"""A mesh in memory and in virtual time: two days take milliseconds, and each run the same steps."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from eventmesh.duration import Duration, seconds
from eventmesh.errors import Unreachable
from eventmesh.persistence.database import Database
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.mesh.base import Mesh
from eventmesh.testing.mesh.broker import MeshTransport, Record
from eventmesh.testing.mesh.databases import Workshop, sharing, url_of
from eventmesh.testing.mesh.effects import Effects
from eventmesh.testing.mesh.predicates import BrokenPredicate, Predicates, Violation
from eventmesh.testing.mesh.request import Request
from eventmesh.testing.mesh.worker import WorkerProcess
from eventmesh.testing.virtual.clock import Ids, VirtualClock
from eventmesh.testing.virtual.loop import VirtualLoop, place_of
from eventmesh.testing.virtual.process import CURRENT_PROCESS, Disturbances, Process
from eventmesh.testing.virtual.real_world import RealWorld
from eventmesh.transports.base import DeadLetter
from eventmesh.transports.memory import MemoryBroker

LONGEST_HANDLING = 600.0
"""Virtual seconds after which `quiet` says what is still going on."""

_OUTBOX = """
SELECT count(*) FILTER (WHERE due_at IS NULL OR due_at <= :now),
    min(due_at) FILTER (WHERE due_at > :now)
FROM eventmesh_outbox WHERE NOT parked
"""
_TICK = 1e-6
"""Seconds: the smallest time that a database tells apart."""

_SQLITE_TIME = "%Y-%m-%d %H:%M:%S.%f"


@dataclass(frozen=True, slots=True)
class _Outbox:
    """What an outbox holds: how many messages are `due`, and when the next one will be, after so
    many `changes` of its database."""

    changes: int
    due: int
    next_due: float | None

    def is_over(self, now: float) -> bool:
        """Whether more are due now."""
        return self.next_due is not None and self.next_due <= now


class VirtualMesh(Mesh):
    """A mesh that lives on a virtual loop.

    The `workshop` is shared by meshes that run one after another.
    """

    def __init__(self, loop: VirtualLoop, workshop: Workshop, settings: Settings) -> None:
        self.loop = loop
        self.workshop = workshop
        self._ids = Ids()
        self._paths: dict[str, Path] = {}
        self._broker = MemoryBroker()
        clock = VirtualClock(loop, self._ids)
        record = Record(clock, loop.progressed)
        super().__init__(
            clock,
            record,
            MeshTransport(clock, self._broker, record),
            settings.model_copy(update={"broker_url": "memory://"}),
            Predicates(self._paths, workshop.engines_of_predicates),
        )
        self._own_loop = loop
        self.record.hidden = f"{workshop.now}/"
        self._files: dict[str, list[str]] = {}
        """The database files, with the names of the services that have their tables in them."""
        self._known_outboxes: dict[str, _Outbox] = {}
        self.effects = Effects()
        self.requests: list[Request] = []
        """All that were made."""
        self.disturbances: Disturbances | None = None
        """What goes wrong in the workers that are started from now on."""
        loop.on_write = self._after_write

    # Starting and stopping

    async def kill(self, service: Service, number: int = 1) -> None:
        worker = self._workers_of(service)[number - 1]
        self.end_worker(worker)
        await self.loop.idle()

    def end_worker(self, worker: WorkerProcess) -> None:
        """Kill a worker at once, from within its own step too."""
        self.workers.remove(worker)
        self._dead.append(worker)
        self.record.note(worker.process.service, f"{worker.process.name} killed", "fault")
        worker.kill()

    async def request(self, service: Service, call: Callable[[], Awaitable[None]]) -> bool:
        name = f"{self._known(service).name}.web"
        process = Process(name, 1 + sum(each.process.service == name for each in self.requests))
        process.disturbances = self.disturbances
        request = Request(process, call)
        self.requests.append(request)
        return await request.ended()

    def end_request(self, request: Request) -> None:
        """Kill the process of a request at once, from within its own step too."""
        self.record.note(request.process.service, f"{request.process.name} killed", "fault")
        request.kill()

    async def _close_own(self) -> None:
        for request in self.requests:
            await request.unwind()
        self.predicates.close()

    # Messages

    def dead_letters(self, service: Service | None = None) -> list[DeadLetter]:
        return [
            letter
            for name, queue in sorted(self._broker.queues.items())
            if service is None or name in service.handlers
            for letter in queue.dead.values()
        ]

    # Time

    async def quiet(self) -> None:
        self._require_own_loop()
        began_at = self.loop.now
        await self.loop.idle()
        while self._is_going_on():
            if self.loop.now - began_at > LONGEST_HANDLING:
                raise AssertionError(
                    f"after {LONGEST_HANDLING:,.0f} s this is still going on: "
                    f"{'; '.join([*self._going_on(), *self._waits()])}\n\n{self.story()}"
                )
            self._raise_ended()
            await self._pass_time(self.loop.now + LONGEST_HANDLING)
        self._raise_ended()

    async def advance(self, duration: Duration) -> None:
        self._require_own_loop()
        until = self.loop.now + seconds(duration)
        await self.loop.idle()
        self.loop.progressed()
        while True:
            while self.loop.now < until and self._is_going_on():
                self._raise_ended()
                await self._pass_time(until)
            due = self._next_due()
            if due is None or due >= until:
                break
            self.loop.jump(due)
            await self.loop.idle()
        self.loop.jump(until)
        await self.quiet()

    async def _pass_time(self, until: float) -> None:
        """Let time go on to the next timer. Where only processes that stand still have something to
        do, let it go on until one of them continues: all that the others would do meanwhile is to
        look, again and again, whether there is something."""
        continues_at = None if self.disturbances is None else self.disturbances.next_return
        if continues_at is None or self._can_go_on():
            await self.loop.pass_time(until)
        else:
            self.loop.jump(min(until, continues_at))
            await self.loop.idle()

    def _is_going_on(self) -> bool:
        """Whether anything can still happen at this time."""
        if any(queue.in_flight for queue in self._broker.queues.values()):
            return True  # as most often
        return next(self._going_on(), None) is not None

    def _going_on(self) -> Iterator[str]:
        """What can still happen at this time, in words."""
        consumed = {each.subscription for each in self._broker.consumers}
        if self.disturbances is not None:  # who has lost the broker consumes again in a moment
            consumed |= {name for worker in self.workers for name in worker.service.handlers}
        for name, queue in self._broker.queues.items():
            ready = sum(each.visible_at <= self.loop.now for each in queue.waiting)
            if queue.in_flight or (ready and name in consumed):
                yield f"{name} handles {len(queue.in_flight)} messages, {ready} wait"
        for names, outbox in self._outboxes(self.workers):
            if outbox.due:
                yield f"the outbox of {' and '.join(names)} holds {outbox.due} messages"

    def _waits(self) -> list[str]:
        """Where code of the services waits, in words."""
        running = {each for each in self.processes if not each.is_dead}
        tasks = [task for task in asyncio.all_tasks() if getattr(task, "process", None) in running]
        places = sorted({place for task in tasks if (place := place_of(task))})
        return [f"{place} waits" for place in places if ": eventmesh/" not in place]

    def _can_go_on(self) -> bool:
        """Whether a worker that does not stand still has something to do."""
        running = [each for each in self.workers if not each.process.is_paused]
        if len(running) == len(self.workers):
            return True
        names = {name for worker in running for name in worker.service.handlers}
        held = Counter(
            name for each in self.workers if each.process.is_paused for name in each.held()
        )
        return any(
            len(queue.in_flight) > held[name]
            or (name in names and any(each.visible_at <= self.loop.now for each in queue.waiting))
            for name, queue in self._broker.queues.items()
        ) or any(outbox.due for _, outbox in self._outboxes(running))

    def _next_due(self) -> float | None:
        """When something becomes due that is not due now."""
        times = [
            each.visible_at
            for queue in self._broker.queues.values()
            for each in queue.waiting
            if each.visible_at > self.loop.now
        ]
        for path in self._files:
            if (next_due := self._outbox(path).next_due) is not None:
                times.append(next_due + _TICK)
        return min(times, default=None)

    def _outboxes(self, workers: Sequence[WorkerProcess]) -> Iterator[tuple[list[str], _Outbox]]:
        """The outboxes that these workers relay, with the names of their services."""
        relaying = {worker.service.name for worker in workers}
        for path, names in self._files.items():
            if not relaying.isdisjoint(names):
                yield names, self._outbox(path)

    def _outbox(self, path: str) -> _Outbox:
        """What an outbox holds; asked only where it may have changed since it was asked last."""
        known, changes = self._known_outboxes.get(path), self.loop.changes[path]
        if known is None or known.changes != changes or known.is_over(self.loop.now):
            asked = {"now": self.loop.date().strftime(_SQLITE_TIME)}
            due, text = self.workshop.connections.plain(path).execute(_OUTBOX, asked).fetchone()
            next_due = None
            if text is not None:
                at = datetime.fromisoformat(text).replace(tzinfo=self.now.tzinfo)
                next_due = self.loop.now + (at - self.loop.date()).total_seconds()
            known = self._known_outboxes[path] = _Outbox(changes, due, next_due)
        return known

    def look(self, statement: str) -> Iterator[tuple[Path, Sequence[Any]]]:
        """The rows that this reads in each database, with the file that they are in."""
        for path in dict.fromkeys(self._paths.values()):
            found = self.workshop.connections.plain(str(path)).execute(statement).fetchall()
            yield from ((path, row) for row in found)

    async def settle(self, within: Duration = "90d") -> None:
        until = self.loop.now + seconds(within)
        await self.quiet()
        while (due := self._next_due()) is not None:
            if due > until:
                raise AssertionError(
                    f"messages are still due after {within}; there may be no end to them."
                    f"\n\n{self.story()}"
                )
            await self.advance(due - self.loop.now)

    def _after_write(self, path: str) -> None:
        if self._ended_by is None:
            try:
                self.predicates.ask_after_write(Path(path))
            except (Violation, BrokenPredicate) as error:
                self._ended_by = error
                self.record.note("test", "this must always hold and does not", "fault")

    def notice(self, error: RealWorld) -> None:
        """A process has used the real world."""
        process = CURRENT_PROCESS.get()
        if process is not None and self._ended_by is None:
            self._ended_by = error
            self.record.note(process.service, "the real world is used", "fault")

    # Services

    async def _add(self, services: Sequence[Service]) -> None:
        await super()._add(services)
        for service in self._services.values():  # used by handlers that open transactions of it
            url = self.settings.database_url(service.name)
            database = await self.workshop.database(url, service, "")
            # The first connection of a pool has a lock, which a killed process would keep.
            await database.read(lambda _: None)
            service._database, service._database_ready = database, True
            service.on_commit(partial(_notify, database))

    async def _make_databases(self, services: Sequence[Service]) -> Mapping[str, str]:
        for group in sharing(services):
            path = self.workshop.now / f"{group[0].name}.db"
            await self.workshop.write(group, path)
            self._paths |= {service.name: path for service in group}
            self._files.setdefault(str(path), []).extend(service.name for service in group)
        return {name: url_of(path) for name, path in self._paths.items()}

    async def _start_worker(self, service: Service, number: int) -> WorkerProcess:
        process = Process(service.name, number)
        process.disturbances = self.disturbances
        clock = VirtualClock(self.loop, self._ids, process)
        transport = MeshTransport(clock, self._broker, self.record, process)
        database = await self.workshop.database(
            self.settings.database_url(service.name), service, process.name
        )
        worker = WorkerProcess(
            service,
            process,
            transport,
            self.settings,
            clock,
            database,
            self.effects.watch,
            is_checked=self._is_first_version(service),
        )
        self.workers.append(worker)
        return worker

    @property
    def processes(self) -> list[Process]:
        """Those of all workers and requests that were ever started."""
        everyone: list[WorkerProcess | Request] = [*self.workers, *self._dead, *self.requests]
        return [each.process for each in everyone]

    async def close(self) -> None:
        if self.disturbances is not None:  # nobody looks at what a drain would leave
            living = asyncio.all_tasks()
            for worker in self.workers:
                worker.kill(living)
            self._dead += self.workers
            self.workers.clear()
        await super().close()

    async def _until_ready(self, worker: WorkerProcess) -> None:
        """Return once it consumes. In a simulation, one whose start meets a server that is away is
        started again a second later, as a supervisor does."""
        if self.disturbances is None:
            await super()._until_ready(worker)
            return
        while True:
            self._starting.append(worker)
            ready = asyncio.ensure_future(worker.ready())
            await self.loop.idle()
            while not ready.done():
                await self._pass_time(self.loop.now + LONGEST_HANDLING)
            self._starting.remove(worker)
            try:
                ready.result()
            except Unreachable as error:
                self.record.note(worker.process.service, f"{worker.process.name} ended: {error}")
                self.workers.remove(worker)
                self._dead.append(worker)
                await self.clock.sleep(1.0)
                service = self._services[worker.service.name]
                worker = await self._start_worker(service, self._next_number(service))
            else:
                return


def _notify(database: Database, _stored: object) -> None:
    database.notifier.notify_soon()
