"""A whole mesh in one test: services, their workers and databases, and a broker.

    async def test_an_order_is_closed(mesh):
        await mesh.start(orders, payments)
        await mesh.publish(OrderPlaced(order_id=1, amount=10))
        await mesh.quiet()
        assert mesh.published(OrderClosed) == [OrderClosed(order_id=1)]

Each service runs in workers of its own, with a database of its own; what they do is what
`eventmesh worker` does. Three calls move a mesh:

    start(…)        until the workers consume
    quiet()         until nothing more can happen at this time: every message that is due has been
                    handled, and what is left waits for a later time
    advance("2d")   through all that becomes due within two days: retries, delays, time-outs

There are two meshes, for which the same tests are written: `VirtualMesh`, in memory and in virtual
time, and `RealMesh`, on real servers and in real time. This module has what they share.

The story of what happened is in `mesh.story()`, and in the report of a test that fails.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.clock import Clock
from eventmesh.contracts.message import Message, check_message, identity_of
from eventmesh.duration import Duration
from eventmesh.errors import UsageError
from eventmesh.operations.reach import Reach
from eventmesh.operations.sagas import find_saga, list_sagas
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.mesh.broker import Record
from eventmesh.testing.mesh.predicates import Predicate, Predicates, checked
from eventmesh.testing.mesh.story import draw
from eventmesh.testing.mesh.worker import WorkerProcess
from eventmesh.testing.virtual.process import CURRENT_PROCESS
from eventmesh.transports.base import DeadLetter, Transport, publish_or_raise
from eventmesh.wire.envelope import Envelope, open_envelope, seal

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class SagaView:
    """Where a saga stands. `steps` says what became of each step: `sent`, `done`, `undone`, …"""

    id: str
    key: str | None
    status: str
    state: dict[str, Any]
    steps: dict[str, str]
    reason: str | None


class Mesh(ABC):
    """One mesh of services, which lives as long as one test.

    `clock` tells the time of the test, `record` is what is told of the mesh, and `transport` is the
    test's own connection to the broker.
    """

    def __init__(
        self,
        clock: Clock,
        record: Record,
        transport: Transport,
        settings: Settings,
        predicates: Predicates,
    ) -> None:
        self.clock = clock
        self.record = record
        self.transport = transport
        self.settings = settings
        self.predicates = predicates
        self._own_loop: asyncio.AbstractEventLoop | None = None
        """The event loop on which the test runs."""
        self._services: dict[str, Service] = {}
        self._configured_before: dict[Service, tuple[Settings | None, Clock]] = {}
        """How all services that were ever started were configured, to leave them so."""
        self.started: list[Service] = []
        """The services that have had workers, of each the version that was started last."""
        self.workers: list[WorkerProcess] = []
        """All that were started and not killed."""
        self._starting: list[WorkerProcess] = []
        """Those whose start somebody waits for, who is told what ended it."""
        self._dead: list[WorkerProcess] = []
        self._ended_by: Exception | None = None
        """What ends the test, although a handler may swallow it or be retried after it: a
        predicate that does not hold after a commit, or the use of the real world or of a service
        that is not in the mesh."""

    # Starting and stopping

    async def start(self, *services: Service, workers: int = 1) -> None:
        """Start so many workers of each service, and return when they consume. Raises what ends one
        before.

        A service with the name of one that was started before is another version of it, and has its
        database. It is checked as in production: Drift if open sagas or frozen schemas do not allow
        it. The workers of the old version go on, unless they were drained or killed.
        """
        self._require_own_loop()
        await self._add(services)
        names = {each.name for each in services}
        self.started = [each for each in self.started if each.name not in names] + [*services]
        # As after an earlier deployment: what is published now waits for workers that start late.
        await self.transport.declare(
            [handler.subscription for service in services for handler in service.worked]
        )
        started = [
            await self._start_worker(service, self._next_number(service, of=workers))
            for service in services
            for _ in range(workers)
        ]
        for worker in started:
            await self._until_ready(worker)

    async def restart(self, service: Service) -> None:
        """Start one more worker of this service, as a supervisor does in the place of a dead
        one."""
        self._require_own_loop()
        worker = await self._start_worker(service, self._next_number(service))
        await self._until_ready(worker)

    async def drain(self, *services: Service) -> None:
        """Let the workers of these services, or of all, finish what they began, and end."""
        names = {service.name for service in services} or set(self._services)
        for worker in [each for each in self.workers if each.service.name in names]:
            self.workers.remove(worker)
            await worker.drain()

    @abstractmethod
    async def kill(self, service: Service, number: int = 1) -> None:
        """Kill a worker of this service, between any two of its steps, as SIGKILL does. What it had
        not committed is rolled back, and what it had received is delivered again."""

    async def request(self, service: Service, call: Callable[[], Awaitable[None]]) -> bool:
        """Call this as the service's web application would to answer a request, in a process of its
        own, and return whether it came to its end: a simulation may kill the process, or abort its
        transactions. What it raises otherwise is raised."""
        self._known(service)
        await call()
        return True

    async def close(self) -> None:
        """End all workers and close what was opened. Raises what ended a worker."""
        errors: list[Exception] = []
        try:
            for worker in [*self.workers]:
                try:
                    await worker.drain()
                except Exception as error:  # noqa: BLE001  # raised below, when all have ended
                    errors.append(error)
            for worker in self._dead:
                await worker.unwind()
        finally:
            for service, before in self._configured_before.items():
                await service.close()
                service._settings, service.clock = before
            await self._close_own()
        if self._ended_by is not None:
            raise self._ended_by
        if errors:
            raise errors[0]

    @abstractmethod
    async def _close_own(self) -> None:
        """Close what only this kind of mesh has opened."""

    # Messages

    async def publish(self, message: Message) -> str:
        """Put an event or a command on the broker, as its owner, or any sender, would have done;
        returns its id. To publish through a service's outbox, use its publisher."""
        check_message(message)
        envelope = seal(message, source=identity_of(type(message)).owner, clock=self.clock)
        await self.put(envelope)
        return envelope.id

    async def put(self, envelope: Envelope) -> None:
        """Put a message on the broker as it is: a duplicate, an older version, a foreign one."""
        self._require_own_loop()
        await publish_or_raise(self.transport, [envelope])

    def published(self, message: type[M]) -> list[M]:
        """All messages of this kind that have come to the broker, each once, in that order."""
        name = identity_of(message).name
        found = [each for each in self.record.published.values() if each.name == name]
        return [open_envelope(each, message) for each in found]  # type: ignore[misc]  # its model

    def expect(self, message: type[M], **fields: object) -> M:
        """The one message of this kind that was published, with these values in its fields.
        AssertionError, with the story, if there is none or several. UsageError for a field that
        the message does not have."""
        for name in fields:
            if name not in message.model_fields:
                known = ", ".join(message.model_fields) or "none"
                raise UsageError(f"{message.__name__} has no field {name!r}, but these: {known}.")
        found = [
            each
            for each in self.published(message)
            if all(getattr(each, name) == value for name, value in fields.items())
        ]
        if len(found) != 1:
            wanted = ", ".join(f"{name}={value!r}" for name, value in fields.items())
            others = len(self.published(message)) - len(found)
            seen = "was not published" if not found else f"was published {len(found)} times"
            also = f", and {others} with other values" if others else ""
            raise AssertionError(
                f"{message.__name__}({wanted}) {seen}{also}: one was expected.\n\n{self.story()}"
            )
        return found[0]

    @abstractmethod
    def dead_letters(self, service: Service | None = None) -> list[DeadLetter]:
        """The dead letters of all subscriptions, or of those of one service."""

    # Time

    @property
    def now(self) -> datetime:
        """The time in the mesh."""
        return self.clock.now()

    @abstractmethod
    async def quiet(self) -> None:
        """Return when nothing more can happen at this time: no message is due on the broker or in
        an outbox, and no handler runs. What is delayed, or retried later, waits for `advance`.

        AssertionError, with the story, if something is still going on after ten minutes of virtual
        time; or of real time, after one.
        """

    @abstractmethod
    async def advance(self, duration: Duration) -> None:
        """Let this much time pass, with all that becomes due in it, and be quiet at its end."""

    @abstractmethod
    async def settle(self, within: Duration = "90d") -> None:
        """Advance until nothing will happen any more, however late it is due. AssertionError, with
        the story, if that takes longer than `within`."""

    def _raise_ended(self) -> None:
        """Raise what ends the test, or ended a worker that was not told to end."""
        ended_by, self._ended_by = self._ended_by, None
        if ended_by is not None:
            raise ended_by
        for worker in [*self.workers]:
            if worker.task.done() and worker not in self._starting:
                self.workers.remove(worker)
                worker.task.result()

    # State

    def always(self, predicate: Predicate) -> Predicate:
        """This must hold after each commit that writes to a table of a service; see `predicates`.
        What does not hold is raised by the call that moves the mesh."""
        self.predicates.always.append(checked(predicate))
        return predicate

    def eventually(self, predicate: Predicate) -> Predicate:
        """This must hold at the end of the test, when nothing can happen any more."""
        self.predicates.eventually.append(checked(predicate))
        return predicate

    def sometimes(self, predicate: Predicate) -> Predicate:
        """This must hold after one commit at least, in any of a simulation's runs."""
        self.predicates.sometimes.append(checked(predicate))
        return predicate

    @asynccontextmanager
    async def session(self, service: Service) -> AsyncIterator[AsyncSession]:
        """A session on the service's own database, committed on leaving."""
        database = await self._known(service).database()
        async with (
            AsyncSession(database.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    async def saga(self, saga: Any, id: str | None = None, *, key: object = None) -> SagaView:  # noqa: A002  # what it is
        """The saga with this id or business key. AssertionError, with the story, if there is
        none."""
        service = self._known_by_name(str(saga.name).partition(".")[0])
        async with Reach([service], self.settings, self.clock, self.transport) as reach:
            if id is None:
                listing = await list_sagas(reach, service, key=str(key), limit=2)
                rows = [row for row in listing.rows if row.name == saga.name]
            else:
                story = await find_saga(reach, service, id)
                rows = [] if story is None else [story.row]
        if not rows:
            raise AssertionError(
                f"There is no saga {saga.name} with {'id' if id else 'key'} {id or key!r}.\n\n"
                f"{self.story()}"
            )
        row = rows[0]
        steps = {name: str(unit.get("status", "")) for name, unit in row.steps.items()}
        return SagaView(row.id, row.key, row.status, row.state, steps, row.reason)

    def story(self) -> str:
        """What has happened, as a sequence diagram; below it, what nobody has taken."""
        drawn = draw(self.record.story.happenings)
        open_ones = ", ".join(map(self.record.label, self.record.not_taken()))
        return f"{drawn}\n\npublished, and taken by nobody: {open_ones}" if open_ones else drawn

    # Services

    async def _add(self, services: Sequence[Service]) -> None:
        for each in services:
            if not isinstance(each, Service):
                raise UsageError(f"mesh.start was given {each!r}: pass a Service.")
        new = [each for each in services if each.name not in self._services]
        urls = await self._make_databases(new)
        self.settings = self.settings.model_copy(
            update={"database_urls": {**self.settings.database_urls, **urls}}
        )
        for service in services:
            self._services[service.name] = service
            self._configured_before.setdefault(service, (service._settings, service.clock))
            service.clock = self.clock
        for service in self._services.values():
            await service.close()
            service.configure(self.settings)

    @abstractmethod
    async def _make_databases(self, services: Sequence[Service]) -> Mapping[str, str]:
        """New databases for these services, with all tables; returns the URLs by their names."""

    @abstractmethod
    async def _start_worker(self, service: Service, number: int) -> WorkerProcess:
        """Start a worker, which need not be ready yet."""

    async def _until_ready(self, worker: WorkerProcess) -> None:
        """Return once it consumes. Raises what ends it before."""
        try:
            await worker.ready()
        except Exception:
            self.workers.remove(worker)
            self._dead.append(worker)
            raise

    def _is_first_version(self, service: Service) -> bool:
        """Whether no other service of this name was started before."""
        return (
            next(each for each in self._configured_before if each.name == service.name) is service
        )

    def _next_number(self, service: Service, *, of: int = 2) -> int:
        """The number of the next worker, if the service has so many; 0 for the only one."""
        all_of_it = [*self.workers, *self._dead]
        number = 1 + sum(worker.service.name == service.name for worker in all_of_it)
        return 0 if number == of == 1 else number

    def _workers_of(self, service: Service) -> list[WorkerProcess]:
        found = [worker for worker in self.workers if worker.service.name == service.name]
        if not found:
            raise UsageError(f"No worker of {service.name} runs: call mesh.start first.")
        return found

    def _require_own_loop(self) -> None:
        """UsageError where another event loop runs: what was started on it would disturb the
        test, and the next ones."""
        if asyncio.get_running_loop() is not self._own_loop:
            raise UsageError(
                "The mesh was used outside of its test: only `async def test_…(mesh)`, and what it "
                "awaits, may call its methods. An async fixture and asyncio.run have another event "
                "loop: write `async def start_shop(mesh)`, and await it in each test."
            )

    def require_member(self, service: Service) -> None:
        """UsageError for a service that was not started here, nor has the mesh's settings: its
        database is the one that its own settings name. If a handler uses it, the test ends with
        that."""
        is_copy = service.name in self._services and service._database is not None  # a worker's
        has_ours = service._settings is self.settings
        if is_copy or has_ours or service in self._configured_before:
            return
        error = UsageError(
            f"The service {service.name} is not in the mesh: call mesh.start first. Without it, "
            f"the service would use the database of its settings."
        )
        if CURRENT_PROCESS.get() is not None and self._ended_by is None:
            self._ended_by = error
        raise error

    def _known(self, service: Service) -> Service:
        return self._known_by_name(service.name)

    def _known_by_name(self, name: str) -> Service:
        if name not in self._services:
            raise UsageError(f"The service {name} is not in the mesh: call mesh.start first.")
        return self._services[name]
