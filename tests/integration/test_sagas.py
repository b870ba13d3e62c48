"""Sagas as their authors and operators meet them: services with databases of their own, workers,
time-outs and dead letters, over the memory transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from sqlalchemy import select, update

from eventmesh import (
    Command,
    Event,
    Reject,
    Retry,
    Saga,
    SagaFailure,
    Service,
    Settings,
    constant,
)
from eventmesh.clock import SystemClock
from eventmesh.errors import Drift, Unreachable
from eventmesh.observability.metrics import WorkerMetrics
from eventmesh.persistence import migration, sagas, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.sagas import SagaRow
from eventmesh.runtime import readiness
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import DeadLetter, Delivery, Subscription, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import Dead, RetryAfter
from eventmesh.wire.envelope import Envelope, seal

EVERYWHERE = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mariadb"], indirect=True
)


class Requested(Event, name="rides.requested", version=1, key="ride_id"):
    ride_id: str


class Finished(Event, name="rides.finished", version=1, key="ride_id"):
    ride_id: str


class Abandoned(Event, name="rides.abandoned", version=1, key="ride_id"):
    ride_id: str
    reason: str


class Reserve(Command, name="cars.reserve", version=1, key="ride_id"):
    ride_id: str


class Reserved(Event, name="cars.reserved", version=1, key="ride_id"):
    ride_id: str


class Release(Command, name="cars.release", version=1, key="ride_id"):
    ride_id: str


class Released(Event, name="cars.released", version=1, key="ride_id"):
    ride_id: str


class Bill(Command, name="cars.bill", version=1, key="ride_id"):
    ride_id: str


class Billed(Event, name="cars.billed", version=1, key="ride_id"):
    ride_id: str


class Accepted(Event, name="cars.accepted", version=1, key="ride_id"):
    """A driver has accepted, over HTTP: nothing connects this with the saga but the ride's id."""

    ride_id: str


class Ride(BaseModel):
    ride_id: str


def riding(
    *, timeout: str = "1m", bill_timeout: str = "1m", wait: bool = False, step: str = "reserve"
) -> Saga[Ride]:
    """Reserve a car, perhaps wait for the driver, and bill."""
    saga = Saga("rides.ride", Ride, key=lambda state: state.ride_id)

    @saga.starts
    def begin(event: Requested) -> Ride:
        return Ride(ride_id=event.ride_id)

    def reserve(state: Ride) -> Reserve:
        return Reserve(ride_id=state.ride_id)

    reserve.__name__ = step
    reserving = saga.step(ok=Reserved, timeout=timeout)(reserve)

    @reserving.undo(ok=Released)
    def release(state: Ride) -> Release:
        return Release(ride_id=state.ride_id)

    @saga.step(ok=Billed, timeout=bill_timeout, no_undo="the next bill corrects it")
    def bill(state: Ride) -> Bill:
        return Bill(ride_id=state.ride_id)

    if wait:
        accepted = saga.wait(
            "accepted", ok=Accepted, timeout="1m", correlate=lambda event: event.ride_id
        )
        saga.flow(reserving >> accepted >> bill)
    else:
        saga.flow(reserving >> bill)

    @saga.completed
    def finished(state: Ride) -> Finished:
        return Finished(ride_id=state.ride_id)

    @saga.undone
    def abandoned(state: Ride, failure: SagaFailure) -> Abandoned:
        return Abandoned(ride_id=state.ride_id, reason=failure.reason)

    return saga


Declare = Callable[[Service, Service], None]
"""Declares handlers on the services rides and cars."""


@dataclass
class Mesh:
    """The service that owns the saga, its participant, and one broker."""

    rides: Service
    cars: Service
    """With which the test publishes and looks into databases; workers have services of their
    own."""
    settings: Settings
    transport: MemoryTransport
    did: list[str] = field(default_factory=list)
    """What the participant was asked to do."""
    _ended: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> list[str]:
        """The endings that were announced."""
        return list(self._ended.values())

    async def start(self, *ride_ids: str) -> None:
        async with self.rides.transaction() as tx:
            for ride_id in ride_ids:
                tx.publish(Requested(ride_id=ride_id))

    async def accept(self, ride_id: str) -> None:
        """What a driver's app does."""
        event = seal(Accepted(ride_id=ride_id), source="cars", clock=SystemClock())
        await publish_or_raise(self.transport, [event])

    async def rows(self) -> list[SagaRow]:
        async with (await self.rides.database()).reading() as connection:
            return await sagas.find(connection, most=1000)

    async def statuses(self) -> set[str]:
        return {row.status for row in await self.rows()}

    async def timers(self) -> list[str]:
        """The ids of the time-outs that wait in the outbox."""
        async with (await self.rides.database()).reading() as connection:
            waiting = select(tables.outbox.c.id).where(tables.outbox.c.due_at.is_not(None))
            return list(await connection.scalars(waiting))

    async def dead(self, name: str) -> Sequence[DeadLetter]:
        return await self.transport.dead_letters(Subscription(name, ()), limit=100)

    @asynccontextmanager
    async def worker(self, *declarations: Declare) -> AsyncIterator[Worker]:
        """A worker of both services, as these declare them, beside the body; raises what ends it
        early."""
        rides, cars = Service("rides"), Service("cars")
        self._hear_of_ends(rides)
        for declare in declarations:
            declare(rides, cars)
        stop = asyncio.Event()
        worker = Worker([rides, cars], self.transport, self.settings, SystemClock())
        running = asyncio.ensure_future(worker.run(stop))
        body = asyncio.current_task()
        running.add_done_callback(lambda _: stop.is_set() or (body and body.cancel()))
        try:
            yield worker
        except asyncio.CancelledError:
            if not running.done():
                raise
            if body is not None:
                body.uncancel()
            await running
        finally:
            stop.set()
            await asyncio.wait_for(running, 60)

    def _hear_of_ends(self, rides: Service) -> None:
        @rides.subscriber(Finished, Abandoned)
        async def end(event: Finished | Abandoned, envelope: Envelope) -> None:
            self._ended[envelope.id] = type(event).__name__  # a plain handler may hear it twice


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds."""

    async def holds() -> bool:
        try:
            return await condition()
        except Unreachable:
            return False

    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110  # the condition lies in a database
            await asyncio.sleep(0.01)


@pytest.fixture
async def mesh(database_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    """The participant answers at once; a test includes the saga, and may replace handlers."""
    urls = {"rides": database_url, "cars": f"sqlite:///{tmp_path / 'cars.db'}"}
    for name, url in urls.items():
        database = Database(url, service=name)
        await migration.upgrade(database)
        await database.close()
    settings = Settings(database_urls=urls, schemas=tmp_path / "schemas", lease_time=1.0)
    made = Mesh(Service("rides"), Service("cars"), settings, MemoryTransport(SystemClock()))
    for service in (made.rides, made.cars):
        service.configure(settings)
    made.rides.publisher(Requested)

    yield made
    await made.rides.close()
    await made.cars.close()


def with_saga(saga: Saga[Ride]) -> Declare:
    return lambda rides, _cars: rides.include(saga)


def answering(mesh: Mesh, *, but: type[Command] | None = None) -> Declare:
    """Let the participant answer every command, but one."""

    def declare(_rides: Service, cars: Service) -> None:
        if but is not Reserve:

            @cars.subscriber(Reserve)
            async def reserve(command: Reserve) -> Reserved:
                mesh.did.append("reserve")
                return Reserved(ride_id=command.ride_id)

        if but is not Release:

            @cars.subscriber(Release)
            async def release(command: Release) -> Released:
                mesh.did.append("release")
                return Released(ride_id=command.ride_id)

        if but is not Bill:

            @cars.subscriber(Bill)
            async def bill(command: Bill) -> Billed:
                mesh.did.append("bill")
                return Billed(ride_id=command.ride_id)

    return declare


def silent(asked: list[Envelope]) -> Declare:
    """Let the participant take the command to reserve, and never answer."""

    def declare(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Reserve)
        async def reserve(command: Reserve, envelope: Envelope) -> None:
            asked.append(envelope)

    return declare


@EVERYWHERE
async def test_many_sagas_end_once_each_with_two_workers_and_leave_no_time_out_behind(
    mesh: Mesh,
) -> None:
    declared = with_saga(riding()), answering(mesh)

    async def all_ended() -> bool:
        return len(mesh.ended) >= 60

    async with mesh.worker(*declared), mesh.worker(*declared):
        await mesh.start(*(f"r{number}" for number in range(60)))
        await until(all_ended)
    assert mesh.ended == ["Finished"] * 60
    assert await mesh.statuses() == {"completed"}
    if (await mesh.rides.database()).dialect.can_cancel_delayed:
        assert await mesh.timers() == []
    assert sorted(mesh.did) == ["bill"] * 60 + ["reserve"] * 60
    assert await mesh.dead("rides.ride.saga") == []


@EVERYWHERE
async def test_a_time_out_fires_once_soon_after_its_time_and_what_may_have_been_done_is_undone(
    mesh: Mesh,
) -> None:
    def silent(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Bill)
        async def never(command: Bill) -> None:
            mesh.did.append("asked to bill")

    declared = with_saga(riding(bill_timeout="1s")), answering(mesh, but=Bill), silent

    async def ended() -> bool:
        return bool(mesh.ended)

    async with mesh.worker(*declared), mesh.worker(*declared):
        await mesh.start("r1")
        await until(ended)
    [what] = mesh.ended
    [row] = await mesh.rows()
    assert what == "Abandoned"
    assert row.reason == "bill: no answer within 1 s"
    assert mesh.did == ["reserve", "asked to bill", "release"]
    database = await mesh.rides.database()
    async with database.reading() as connection:
        log = await sagas.log_of(connection, "rides.ride", row.id)
    times = {entry.get("message"): at for at, entry in log}
    waited = times["timed_out"] - next(at for at, entry in log if "bill" in entry.get("sent", ()))
    assert waited >= timedelta(seconds=1)
    assert [entry["rule"] for _, entry in log] == ["started", "applied", "failed", "applied"]


async def test_a_dead_lettered_command_fails_its_step_and_the_saga_is_undone(mesh: Mesh) -> None:
    def failing(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Bill, retry=Retry(attempts=2, backoff=constant("10ms")))
        async def bill(command: Bill) -> Billed:
            raise ValueError("the printer is on fire")

    async def ended() -> bool:
        return bool(mesh.ended)

    async with mesh.worker(with_saga(riding()), answering(mesh, but=Bill), failing):
        await mesh.start("r1")
        await until(ended)
    [row] = await mesh.rows()
    [letter] = await mesh.dead("cars.bill")
    assert row.status == "undone"
    assert row.reason == f"bill: {letter.reason}"
    assert mesh.did == ["reserve", "release"]


async def test_a_dead_letter_that_is_replayed_and_succeeds_is_a_late_answer_and_is_undone(
    mesh: Mesh,
) -> None:
    broken = True

    def rejecting(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Reserve)
        async def reserve(command: Reserve) -> Reserved:
            if broken:
                raise Reject("no car is known")
            mesh.did.append("reserve")
            return Reserved(ride_id=command.ride_id)

    async def ended() -> bool:
        return bool(mesh.ended)

    async def released_again() -> bool:
        return mesh.did == ["release", "reserve", "release"] and await mesh.statuses() == {"undone"}

    async with mesh.worker(with_saga(riding()), answering(mesh, but=Reserve), rejecting):
        await mesh.start("r1")
        await until(ended)
        broken = False
        [letter] = await mesh.dead("cars.reserve")
        await mesh.transport.replay(Subscription("cars.reserve", ()), [letter.id])
        await until(released_again)
    assert mesh.ended == ["Abandoned"]


async def test_a_drivers_decision_finds_its_saga_by_the_ride_even_if_it_comes_early(
    mesh: Mesh,
) -> None:
    may_reserve = asyncio.Event()

    def waiting(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Reserve)
        async def reserve(command: Reserve) -> Reserved:
            await may_reserve.wait()
            return Reserved(ride_id=command.ride_id)

    declared = with_saga(riding(wait=True)), answering(mesh, but=Reserve), waiting

    async def is_kept() -> bool:
        return any((row.details or {}).get("early") for row in await mesh.rows())

    async def ended() -> bool:
        return len(mesh.ended) == 2

    async with mesh.worker(*declared):
        await mesh.start("r1", "r2")
        await until(lambda: _has_rows(mesh, 2))
        await mesh.accept("r1")
        await until(is_kept)
        may_reserve.set()
        await until(lambda: _waits_for(mesh, "accepted"))
        await mesh.accept("r2")
        await until(ended)
    assert mesh.ended == ["Finished", "Finished"]


async def test_an_event_that_matches_no_saga_is_logged_with_an_example(mesh: Mesh) -> None:

    async def warned() -> bool:
        return any(line["event"] == "event matches no saga" for line in logs)

    with structlog.testing.capture_logs() as logs:
        async with mesh.worker(with_saga(riding(wait=True)), answering(mesh)):
            for ride_id in ("lost", "lost too"):
                await mesh.accept(ride_id)
            await until(warned)
            await mesh.start("r1")
            await until(lambda: _waits_for(mesh, "accepted"))
    lines = [line for line in logs if line["event"] == "event matches no saga"]
    assert [(line["name"], line["key"], line["log_level"]) for line in lines] == [
        ("cars.accepted", "lost", "warning")
    ]


async def measured(worker: Worker) -> dict[tuple[str, ...], float]:
    """The worker's samples about sagas, by name and labels."""
    text = (await WorkerMetrics(worker).text()).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "_saga" in sample.name
    }


async def test_metrics_and_warnings_say_where_sagas_stand(mesh: Mesh) -> None:
    asked: list[Envelope] = []

    async def both_asked() -> bool:
        return len(asked) == 2

    declared = with_saga(riding(wait=True)), answering(mesh, but=Reserve), silent(asked)
    async with mesh.worker(*declared) as worker:
        assert (await measured(worker), await readiness.warnings(worker)) == ({}, [])
        await mesh.start("r1", "r2")
        await until(both_asked)
        await mesh.accept("nobody")
        await until(
            lambda: _is_true(bool(worker.services[0].sagas["rides.ride"].unmatched_events()))
        )
        seen = await measured(worker)
        running = "rides.ride", "rides", "running", "reserve"
        assert seen.pop(("eventmesh_saga_oldest_seconds", *running)) >= 0
        assert seen == {
            ("eventmesh_sagas", *running): 2,
            ("eventmesh_sagas_overdue", "rides.ride", "rides"): 0,
            ("eventmesh_saga_unmatched_events_total", "cars.accepted", "rides.ride", "rides"): 1,
        }
        parked, late = await mesh.rows()
        long_ago = datetime.now(UTC) - timedelta(hours=1)
        await _change(mesh, parked, status="parked", due_at=long_ago)
        await _change(mesh, late, due_at=long_ago)
        assert (await measured(worker))["eventmesh_sagas_overdue", "rides.ride", "rides"] == 1
        assert await readiness.warnings(worker) == [
            "service rides has 1 parked saga(s): see `eventmesh saga list rides --status parked`",
            "service rides has 1 saga(s) that had to time out more than a minute ago and have not: "
            "see `eventmesh saga list rides` and its outbox",
        ]


async def test_code_that_has_renamed_a_step_in_which_sagas_stand_does_not_start(
    mesh: Mesh,
) -> None:
    asked: list[Envelope] = []
    before = with_saga(riding()), answering(mesh, but=Reserve), silent(asked)
    async with mesh.worker(*before):
        await mesh.start("r1", "r2")
        await until(lambda: _is_true(len(asked) == 2))
    with pytest.raises(Drift, match=r"2 in the step reserve.*eventmesh saga list rides"):
        async with mesh.worker(with_saga(riding(step="hold"))):
            await asyncio.Event().wait()
    with pytest.raises(Drift, match=r"2 sagas rides.ride are open.*does not include"):
        async with mesh.worker(lambda rides, _cars: _publishes(rides)):
            await asyncio.Event().wait()


async def test_an_answer_to_a_step_that_the_code_does_not_have_is_retried_and_then_a_dead_letter(
    mesh: Mesh,
) -> None:
    """A worker of the old code and one of the new run side by side, while code is deployed."""
    asked: list[Envelope] = []
    before = with_saga(riding()), answering(mesh, but=Reserve), silent(asked)
    async with mesh.worker(*before):
        await mesh.start("r1")
        await until(lambda: _is_true(bool(asked)))
        answer = Envelope(
            {
                **asked[0].attributes,
                "id": "01900000-0000-7000-8000-0000000000aa",
                "type": "cars.reserved",
                "source": "/cars",
                "dataschema": "urn:eventmesh:cars.reserved:1",
            },
            b'{"ride_id": "r1"}',
        )
        renamed = Service("rides")
        renamed.configure(mesh.settings)
        renamed.include(riding(step="hold"))
        [handler] = renamed.handlers.values()
        vitals = SubscriptionVitals("rides", handler.subscription, SystemClock())
        runner = BatchRunner(renamed, handler, vitals)
        [(_, first)] = await runner.run([Delivery(answer, 1)])
        [(_, last)] = await runner.run([Delivery(answer, 20)])
        await renamed.close()
        assert isinstance(first, RetryAfter)
        assert isinstance(last, Dead)
        assert "has no step reserve in this version of the code" in last.reason
        await publish_or_raise(mesh.transport, [answer])  # as a replay does
        await until(lambda: _is_true(bool(mesh.ended)))
    assert mesh.ended == ["Finished"]


async def test_a_second_saga_of_an_open_key_is_a_dead_letter_that_says_so(mesh: Mesh) -> None:

    async def dead() -> bool:
        return bool(await mesh.dead("rides.ride.saga"))

    async with mesh.worker(with_saga(riding(wait=True)), answering(mesh)):
        await mesh.start("r1")
        await until(lambda: _waits_for(mesh, "accepted"))
        await mesh.start("r1")
        await until(dead)
    [letter] = await mesh.dead("rides.ride.saga")
    assert "with the key 'r1' is open already" in letter.reason
    assert len(await mesh.rows()) == 1


def _publishes(rides: Service) -> None:
    rides.publisher(Requested)


async def _is_true(condition: bool) -> bool:
    return condition


async def _change(mesh: Mesh, row: SagaRow, **values: object) -> None:
    async with (await mesh.rides.database()).connection() as connection:
        await connection.execute(
            update(tables.saga).where(tables.saga.c.id == row.id).values(**values)
        )


async def _has_rows(mesh: Mesh, count: int) -> bool:
    return len(await mesh.rows()) == count


async def _waits_for(mesh: Mesh, step: str) -> bool:
    rows = await mesh.rows()
    return bool(rows) and all(row.waiting_for == step or not row.is_open for row in rows)
