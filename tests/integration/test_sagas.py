"""Sagas as their authors and operators meet them: services with databases of their own, workers,
time-outs and dead letters, in a mesh of the testing kit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from sqlalchemy import select, update

from eventmesh import Command, Event, Reject, Retry, Saga, SagaFailure, Service, constant
from eventmesh.errors import Drift, UsageError
from eventmesh.observability.metrics import WorkerMetrics
from eventmesh.operations.action_log import newest_actions
from eventmesh.operations.reach import Reach
from eventmesh.operations.sagas import find_saga, list_sagas, operate
from eventmesh.persistence import sagas, tables
from eventmesh.persistence.sagas import SagaRow
from eventmesh.runtime import readiness
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.saga.happening import OperatorAction
from eventmesh.testing.mesh import Mesh
from eventmesh.transports.base import Delivery, Subscription
from eventmesh.transports.outcome import Dead, RetryAfter
from eventmesh.wire.envelope import Envelope, seal

SQLITE = "sqlite"
POSTGRESQL = pytest.param("postgresql", marks=pytest.mark.mesh(database="postgresql"))
MARIADB = pytest.param("mariadb", marks=pytest.mark.mesh(database="mariadb"))
EVERYWHERE = pytest.mark.parametrize("database", [SQLITE, POSTGRESQL, MARIADB], indirect=True)


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
    *,
    timeout: str = "1m",
    bill_timeout: str = "1m",
    wait: bool = False,
    step: str = "reserve",
    key: Callable[[Ride], str] | None = lambda state: state.ride_id,
) -> Saga[Ride]:
    """Reserve a car, perhaps wait for the driver, and bill."""
    saga = Saga("rides.ride", Ride, key=key)

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
class Rides:
    """The service that owns the saga, and its participant, in a mesh."""

    mesh: Mesh
    service: Service = field(default_factory=lambda: Service("rides"))
    did: list[str] = field(default_factory=list)
    """What the participant was asked to do."""

    async def deploy(self, *declarations: Declare, workers: int = 1) -> None:
        """Start workers of both services, as these declare them, in the place of those before."""
        await self.mesh.drain()
        self.service, cars = Service("rides"), Service("cars")
        for declare in declarations:
            declare(self.service, cars)
        await self.mesh.start(self.service, cars, workers=workers)

    async def request(self, *ride_ids: str) -> None:
        """Publish what starts these rides, and wait for all that follows at once."""
        for ride_id in ride_ids:
            await self.mesh.publish(Requested(ride_id=ride_id))
        await self.mesh.quiet()

    async def accept(self, *ride_ids: str) -> None:
        """What a driver's app does."""
        for ride_id in ride_ids:
            await self.mesh.publish(Accepted(ride_id=ride_id))
        await self.mesh.quiet()

    async def answer(self, command: Envelope, event: Event) -> None:
        """What the participant publishes at last."""
        sealed = seal(event, source="cars", clock=self.mesh.clock, cause=command)
        await self.mesh.put(sealed)
        await self.mesh.quiet()

    @property
    def ended(self) -> list[str]:
        """The endings that were announced."""
        events = [*self.mesh.published(Finished), *self.mesh.published(Abandoned)]
        return [type(event).__name__ for event in events]

    async def rows(self) -> list[SagaRow]:
        async with self.mesh.session(self.service) as session:
            return await sagas.find(await session.connection(), most=1000)

    async def statuses(self) -> set[str]:
        return {row.status for row in await self.rows()}

    async def steps(self) -> set[str]:
        """What the open sagas wait for."""
        return {row.waiting_for for row in await self.rows() if row.is_open}

    async def timers(self) -> list[str]:
        """The ids of the time-outs that wait in the outbox."""
        if not (await self.service.database()).dialect.can_cancel_delayed:
            return []
        async with self.mesh.session(self.service) as session:
            waiting = select(tables.outbox.c.id).where(tables.outbox.c.due_at.is_not(None))
            return list(await session.scalars(waiting))


@pytest.fixture(autouse=True)
def schemas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder for the schemas."""
    monkeypatch.setenv("EVENTMESH_SCHEMAS", str(tmp_path / "schemas"))


@pytest.fixture(params=[SQLITE, POSTGRESQL])
def database(request: pytest.FixtureRequest) -> str:
    """The kind of database that the services have: in virtual time, or real servers."""
    kind: str = request.param
    return kind


@pytest.fixture
def rides(mesh: Mesh, database: str) -> Rides:
    """A test deploys the saga, and a participant that answers at once or does not."""
    return Rides(mesh)


def with_saga(saga: Saga[Ride]) -> Declare:
    return lambda rides, _cars: rides.include(saga)


def answering(did: list[str], *, but: type[Command] | None = None) -> Declare:
    """Let the participant answer every command, but one, and note what it did."""

    def declare(_rides: Service, cars: Service) -> None:
        if but is not Reserve:

            @cars.subscriber(Reserve)
            async def reserve(command: Reserve) -> Reserved:
                did.append("reserve")
                return Reserved(ride_id=command.ride_id)

        if but is not Release:

            @cars.subscriber(Release)
            async def release(command: Release) -> Released:
                did.append("release")
                return Released(ride_id=command.ride_id)

        if but is not Bill:

            @cars.subscriber(Bill)
            async def bill(command: Bill) -> Billed:
                did.append("bill")
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
    rides: Rides,
) -> None:
    await rides.deploy(with_saga(riding()), answering(rides.did), workers=2)
    await rides.request(*(f"r{number}" for number in range(60)))
    assert rides.ended == ["Finished"] * 60
    assert await rides.statuses() == {"completed"}
    assert await rides.timers() == []
    assert sorted(rides.did) == ["bill"] * 60 + ["reserve"] * 60
    assert rides.mesh.dead_letters() == []


@EVERYWHERE
async def test_a_time_out_fires_once_soon_after_its_time_and_what_may_have_been_done_is_undone(
    rides: Rides,
) -> None:
    def never_billing(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Bill)
        async def never(command: Bill) -> None:
            rides.did.append("asked to bill")

    declared = with_saga(riding(bill_timeout="1s")), answering(rides.did, but=Bill), never_billing
    await rides.deploy(*declared, workers=2)
    await rides.request("r1")
    await rides.mesh.advance("1s")
    [row] = await rides.rows()
    assert rides.ended == ["Abandoned"]
    assert row.reason == "bill: no answer within 1 s"
    assert rides.did == ["reserve", "asked to bill", "release"]
    async with rides.mesh.session(rides.service) as session:
        log = await sagas.log_of(await session.connection(), "rides.ride", row.id)
    times = {entry.get("message"): at for at, entry in log}
    waited = times["timed_out"] - next(at for at, entry in log if "bill" in entry.get("sent", ()))
    assert waited >= timedelta(seconds=1)
    assert [entry["rule"] for _, entry in log] == ["started", "applied", "failed", "applied"]


async def test_a_dead_lettered_command_fails_its_step_and_the_saga_is_undone(rides: Rides) -> None:
    def failing(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Bill, retry=Retry(attempts=2, backoff=constant("10ms")))
        async def bill(command: Bill) -> Billed:
            raise ValueError("the printer is on fire")

    await rides.deploy(with_saga(riding()), answering(rides.did, but=Bill), failing)
    await rides.request("r1")
    await rides.mesh.advance("1s")
    [row] = await rides.rows()
    [letter] = rides.mesh.dead_letters()
    assert letter.subscription == "cars.bill"
    assert row.status == "undone"
    assert row.reason == f"bill: {letter.reason}"
    assert rides.did == ["reserve", "release"]


async def test_a_saga_is_undone_even_if_a_participants_error_cannot_be_stored(rides: Rides) -> None:
    def failing(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Bill)
        async def bill(command: Bill) -> Billed:
            raise Reject("not printable: \0 and \ud800")

    await rides.deploy(with_saga(riding()), answering(rides.did, but=Bill), failing)
    await rides.request("r1")
    await rides.mesh.advance("1s")
    [row] = await rides.rows()
    assert (row.status, row.reason) == ("undone", "bill: not printable: \\x00 and \\ud800")


async def test_a_saga_is_parked_even_if_the_error_of_its_step_cannot_be_stored(
    rides: Rides,
) -> None:
    saga = Saga("rides.ride", Ride)

    @saga.starts
    def begin(event: Requested) -> Ride:
        return Ride(ride_id=event.ride_id)

    @saga.step(ok=Reserved, timeout="1m", no_undo="it has no effect")
    def reserve(state: Ride) -> Reserve:
        raise ValueError("not printable: \0 and \ud800")

    saga.flow(reserve)
    await rides.deploy(with_saga(saga))
    await rides.request("r1")
    await rides.mesh.advance("1s")
    [row] = await rides.rows()
    assert row.status == "parked"
    assert "not printable: \\x00 and \\ud800" in (row.reason or "")


async def test_a_dead_letter_that_is_replayed_and_succeeds_is_a_late_answer_and_is_undone(
    rides: Rides,
) -> None:
    broken = True

    def rejecting(_rides: Service, cars: Service) -> None:
        @cars.subscriber(Reserve)
        async def reserve(command: Reserve) -> Reserved:
            if broken:
                raise Reject("no car is known")
            rides.did.append("reserve")
            return Reserved(ride_id=command.ride_id)

    await rides.deploy(with_saga(riding()), answering(rides.did, but=Reserve), rejecting)
    await rides.request("r1")
    broken = False
    [letter] = rides.mesh.dead_letters()
    await rides.mesh.transport.replay(Subscription("cars.reserve", ()), [letter.id])
    await rides.mesh.quiet()
    assert rides.did == ["release", "reserve", "release"]
    assert await rides.statuses() == {"undone"}
    assert rides.ended == ["Abandoned"]


async def test_a_drivers_decision_finds_its_saga_by_the_ride_even_if_it_comes_early(
    rides: Rides,
) -> None:
    asked: list[Envelope] = []
    declared = with_saga(riding(wait=True)), answering(rides.did, but=Reserve), silent(asked)
    await rides.deploy(*declared)
    await rides.request("r1", "r2")
    assert len(await rides.rows()) == 2
    await rides.accept("r1")
    assert [(row.details or {}).get("early") is not None for row in await rides.rows()].count(
        True
    ) == 1
    for envelope, ride_id in zip(asked, ("r1", "r2"), strict=True):
        await rides.answer(envelope, Reserved(ride_id=ride_id))
    assert await rides.steps() == {"accepted"}
    await rides.accept("r2")
    assert rides.ended == ["Finished", "Finished"]


async def test_an_event_that_matches_no_saga_is_logged_with_an_example(rides: Rides) -> None:
    with structlog.testing.capture_logs() as logs:
        await rides.deploy(with_saga(riding(wait=True)), answering(rides.did))
        await rides.accept("lost", "lost too")
        await rides.request("r1")
        assert await rides.steps() == {"accepted"}
    lines = [line for line in logs if line["event"] == "event matches no saga"]
    assert [(line["name"], line["key"], line["log_level"]) for line in lines] == [
        ("cars.accepted", "lost", "warning")
    ]


async def test_an_event_whose_key_holds_a_nul_matches_no_saga(rides: Rides) -> None:
    """PostgreSQL stores none; and no saga has such a key."""
    own = seal(Accepted(ride_id="r1"), source="cars", clock=rides.mesh.clock)
    foreign = Envelope({**own.attributes, "partitionkey": "r1\0"}, rb'{"ride_id":"r1\u0000"}')
    with structlog.testing.capture_logs() as logs:
        await rides.deploy(with_saga(riding(wait=True)), answering(rides.did))
        await rides.request("r1")
        await rides.mesh.put(foreign)
        await rides.mesh.quiet()
    [line] = [line for line in logs if line["event"] == "event matches no saga"]
    assert line["key"] == "r1\\x00"
    assert await rides.steps() == {"accepted"}
    assert rides.mesh.dead_letters() == []


async def test_a_saga_whose_key_would_hold_a_nul_does_not_start(rides: Rides) -> None:
    await rides.deploy(
        with_saga(riding(key=lambda state: f"{state.ride_id}\0")), answering(rides.did)
    )
    await rides.request("r1")
    [letter] = rides.mesh.dead_letters()
    assert letter.reason == (
        "the handler misuses the API: key= of the saga rides.ride gave 'r1\\x00', which not every "
        "database can store. Give its sagas keys without NUL and lone surrogates."
    )
    assert await rides.rows() == []


async def test_a_worker_starts_though_the_key_of_a_running_saga_would_hold_a_nul(
    rides: Rides,
) -> None:
    asked: list[Envelope] = []
    participant = answering(rides.did, but=Reserve), silent(asked)
    await rides.deploy(with_saga(riding(key=None)), *participant)
    await rides.request("r1")
    with structlog.testing.capture_logs() as logs:
        await rides.deploy(with_saga(riding(key=lambda state: f"{state.ride_id}\0")), *participant)
        [envelope] = asked
        await rides.answer(envelope, Reserved(ride_id="r1"))
    reasons = [line["reason"] for line in logs if line["event"] == "saga has no key"]
    assert reasons
    assert all("gave 'r1\\x00'" in reason for reason in reasons)
    assert await rides.statuses() == {"completed"}


async def measured(worker: Worker) -> dict[tuple[str, ...], float]:
    """The worker's samples about sagas, by name and labels."""
    text = (await WorkerMetrics(worker).text()).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "_saga" in sample.name
    }


async def test_metrics_and_warnings_say_where_sagas_stand(rides: Rides) -> None:
    asked: list[Envelope] = []
    await rides.deploy(
        with_saga(riding(wait=True)), answering(rides.did, but=Reserve), silent(asked)
    )
    worker = rides.mesh.workers[0].worker
    assert (await measured(worker), await readiness.warnings(worker)) == ({}, [])
    await rides.request("r1", "r2")
    await rides.accept("nobody")
    assert len(asked) == 2
    seen = await measured(worker)
    running = "rides.ride", "rides", "running", "reserve"
    assert seen.pop(("eventmesh_saga_oldest_seconds", *running)) >= 0
    assert seen == {
        ("eventmesh_sagas", *running): 2,
        ("eventmesh_sagas_overdue", "rides.ride", "rides"): 0,
        ("eventmesh_saga_unmatched_events_total", "cars.accepted", "rides.ride", "rides"): 1,
    }
    parked, late = await rides.rows()
    long_ago = rides.mesh.now - timedelta(hours=1)
    async with rides.mesh.session(rides.service) as session:
        for row, values in ((parked, {"status": "parked"}), (late, {})):
            changed = update(tables.saga).where(tables.saga.c.id == row.id)
            await session.execute(changed.values(due_at=long_ago, **values))
    assert (await measured(worker))["eventmesh_sagas_overdue", "rides.ride", "rides"] == 1
    assert await readiness.warnings(worker) == [
        "service rides has 1 parked saga(s): see `eventmesh saga list rides --status parked`",
        "service rides has 1 saga(s) that had to time out more than a minute ago and have not: "
        "see `eventmesh saga list rides` and its outbox",
    ]


async def test_events_are_counted_by_version_that_open_sagas_keep(rides: Rides) -> None:
    await rides.deploy(with_saga(riding(wait=True)), answering(rides.did, but=Bill))
    await rides.request("r1", "r2", "r3")
    await rides.accept("r1")

    async def kept(event: str) -> list[tuple[int, int]]:
        async with rides.mesh.session(rides.service) as session:
            lots = await sagas.census_of_kept(await session.connection(), event)
        return [(lot.version, lot.count) for lot in lots]

    assert await kept("cars.reserved") == [(1, 3)]
    assert await kept("cars.accepted") == [(1, 1)]
    assert await kept("cars.reserve") == []


async def test_code_that_has_renamed_a_step_in_which_sagas_stand_does_not_start(
    rides: Rides,
) -> None:
    await rides.deploy(with_saga(riding()), answering(rides.did, but=Reserve), silent([]))
    await rides.request("r1", "r2")
    with pytest.raises(Drift, match=r"2 in the step reserve.*eventmesh saga list rides"):
        await rides.deploy(with_saga(riding(step="hold")))
    with pytest.raises(Drift, match=r"2 saga\(s\) rides.ride are open.*does not include"):
        await rides.deploy(lambda rides, _cars: _publishes(rides))


@EVERYWHERE
async def test_a_saga_that_is_not_in_the_code_any_more_can_be_cancelled(rides: Rides) -> None:
    """Its answers are too late then, also if its code comes back."""
    without_saga: Declare = lambda rides, _cars: _publishes(rides)  # noqa: E731
    asked: list[Envelope] = []
    await rides.deploy(with_saga(riding()), answering(rides.did, but=Reserve), silent(asked))
    await rides.request("r1")
    with pytest.raises(Drift, match=r"eventmesh saga cancel rides ID"):
        await rides.deploy(without_saga)
    mesh = rides.mesh
    async with Reach([rides.service], mesh.settings, mesh.clock, mesh.transport) as reach:
        [row] = (await list_sagas(reach, rides.service, limit=10)).rows
        story = await find_saga(reach, rides.service, row.id[:30])
        assert story is not None
        assert story.row == row
        with pytest.raises(UsageError, match=r"has no saga rides.ride any more"):
            await operate(reach, rides.service, row, OperatorAction("undo", "x"), "Ada")
        done = await operate(reach, rides.service, row, OperatorAction("cancel", "x"), "Ada")
        assert done.record.status == "cancelled"
        with pytest.raises(UsageError, match="the saga has ended: it is cancelled"):
            await operate(reach, rides.service, row, OperatorAction("cancel", "x"), "Ada")
        story = await find_saga(reach, rides.service, row.id)
        assert story is not None
        assert [entry["rule"] for _, entry in story.log] == ["started", "cancelled by an operator"]
        actions = (await newest_actions(reach, 10)).rows
        assert [(each.what, each.reason, each.who) for each in actions] == [
            ("cancel saga", "x", "Ada"),
            ("cancel saga", "x", "Ada"),
        ]
    assert story.row.state == row.state
    assert await rides.timers() == []
    await rides.deploy(without_saga)
    await rides.deploy(with_saga(riding()), answering(rides.did))
    await rides.answer(asked[0], Reserved(ride_id="r1"))
    assert (await rides.statuses(), rides.did) == ({"cancelled"}, [])


async def test_an_answer_to_a_step_that_the_code_does_not_have_is_retried_and_then_a_dead_letter(
    rides: Rides,
) -> None:
    """A worker of the old code and one of the new run side by side, while code is deployed."""
    asked: list[Envelope] = []
    await rides.deploy(with_saga(riding()), answering(rides.did, but=Reserve), silent(asked))
    await rides.request("r1")
    answer = seal(Reserved(ride_id="r1"), source="cars", clock=rides.mesh.clock, cause=asked[0])
    renamed = Service("rides", clock=rides.mesh.clock)
    renamed.configure(rides.mesh.settings)
    renamed.include(riding(step="hold"))
    [handler] = renamed.handlers.values()
    vitals = SubscriptionVitals("rides", handler.subscription, rides.mesh.clock)
    runner = BatchRunner(renamed, handler, vitals)
    [(_, first)] = await runner.run([Delivery(answer, 1)])
    [(_, last)] = await runner.run([Delivery(answer, 20)])
    await renamed.close()
    assert isinstance(first, RetryAfter)
    assert isinstance(last, Dead)
    assert "has no step reserve in this version of the code" in last.reason
    await rides.mesh.put(answer)  # as a replay does
    await rides.mesh.quiet()
    assert rides.ended == ["Finished"]


async def test_a_second_saga_of_an_open_key_is_a_dead_letter_that_says_so(rides: Rides) -> None:
    await rides.deploy(with_saga(riding(wait=True)), answering(rides.did))
    await rides.request("r1")
    assert await rides.steps() == {"accepted"}
    await rides.request("r1")
    [letter] = rides.mesh.dead_letters()
    assert letter.subscription == "rides.ride.saga"
    assert "with the key 'r1' is open already" in letter.reason
    assert len(await rides.rows()) == 1


def _publishes(rides: Service) -> None:
    rides.publisher(Requested)
