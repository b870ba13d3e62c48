"""A change of the code under running sagas: version 1 runs, version 2 is deployed, and all end."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from eventmesh import Command, Event, Saga, SagaFailure, Service
from eventmesh.cli.schema.inventory import refuse_open_sagas
from eventmesh.contracts.message import Message
from eventmesh.errors import Drift
from eventmesh.saga.coordinator import coordinator_of
from eventmesh.saga.evolution import check_sagas
from eventmesh.saga.happening import OperatorAction
from eventmesh.saga.shape_locks import freeze
from eventmesh.wire.envelope import Envelope
from tests.integration.test_sagas import (
    EVERYWHERE,
    Abandoned,
    Accepted,
    Bill,
    Billed,
    Declare,
    Finished,
    Release,
    Released,
    Requested,
    Reserve,
    Reserved,
    Rides,
    database,
    rides,
    schemas,
)

__all__ = ["database", "rides", "schemas"]  # fixtures


class Wash(Command, name="cars.wash", version=1, key="ride_id"):
    ride_id: str


class Washed(Event, name="cars.washed", version=1, key="ride_id"):
    ride_id: str


class One(BaseModel):
    ride_id: str


class Two(BaseModel):
    """The field was renamed."""

    ride: str
    currency: str


def first(*, washes: bool = False) -> Saga[One]:
    """Version 1: reserve a car, and bill. With `washes` it was changed within its version."""
    saga = Saga("rides.ride", One)

    @saga.starts
    def begin(event: Requested) -> One:
        return One(ride_id=event.ride_id)

    @saga.step(ok=Reserved, timeout="1m")
    def reserve(state: One) -> Reserve:
        return Reserve(ride_id=state.ride_id)

    @reserve.undo(ok=Released)
    def release(state: One) -> Release:
        return Release(ride_id=state.ride_id)

    @saga.step(ok=Billed, timeout="1m", no_undo="the next bill corrects it")
    def bill(state: One) -> Bill:
        return Bill(ride_id=state.ride_id)

    if washes:

        @saga.step(ok=Washed, timeout="1m", no_undo="clean is clean")
        def wash(state: One) -> Wash:
            return Wash(ride_id=state.ride_id)

        saga.flow(reserve >> wash >> bill)
    else:
        saga.flow(reserve >> bill)

    @saga.completed
    def finished(state: One) -> Finished:
        return Finished(ride_id=state.ride_id)

    return saga


def second(*, version: int = 2, migrates: bool = True, keeps_reserve: bool = True) -> Saga[Two]:
    """Version 2: another state, and the car is washed before the bill. Perhaps the step `reserve`
    was removed."""
    saga = Saga("rides.ride", Two, version=version)

    @saga.starts
    def begin(event: Requested) -> Two:
        return Two(ride=event.ride_id, currency="USD")

    @saga.step(ok=Washed, timeout="1m", no_undo="clean is clean")
    def wash(state: Two) -> Wash:
        return Wash(ride_id=state.ride)

    @saga.step(ok=Billed, timeout="1m", no_undo="the next bill corrects it")
    def bill(state: Two) -> Bill:
        return Bill(ride_id=state.ride)

    if keeps_reserve:

        @saga.step(ok=Reserved, timeout="1m")
        def reserve(state: Two) -> Reserve:
            return Reserve(ride_id=state.ride)

        @reserve.undo(ok=Released)
        def release(state: Two) -> Release:
            return Release(ride_id=state.ride)

        saga.flow(reserve >> wash >> bill)
    else:
        saga.flow(wash >> bill)

    @saga.completed
    def finished(state: Two) -> Finished:
        return Finished(ride_id=f"{state.ride} in {state.currency}")

    @saga.undone
    def abandoned(state: Two, failure: SagaFailure) -> Abandoned:
        return Abandoned(ride_id=state.ride, reason=failure.reason)

    if migrates:

        @saga.migrate(from_version=1)
        def add_currency(state: dict[str, Any]) -> dict[str, Any]:
            return {"ride": state["ride_id"], "currency": "EUR"}

    return saga


def included(saga: Saga[Any]) -> Declare:
    return lambda rides, _cars: rides.include(saga)


def participant(asked: dict[str, Envelope], *, slow: set[tuple[str, type[Command]]]) -> Declare:
    """Cars that answer, but for these rides and commands, whose envelopes they put into `asked`."""

    def declare(_rides: Service, cars: Service) -> None:
        def answer(command: Any, envelope: Envelope, event: Message) -> Message | None:
            if (command.ride_id, type(command)) in slow:
                asked[command.ride_id] = envelope
                return None
            return event

        @cars.subscriber(Reserve)
        async def reserve(command: Reserve, envelope: Envelope) -> Reserved | None:
            return answer(command, envelope, Reserved(ride_id=command.ride_id))  # type: ignore[return-value]

        @cars.subscriber(Bill)
        async def bill(command: Bill, envelope: Envelope) -> Billed | None:
            return answer(command, envelope, Billed(ride_id=command.ride_id))  # type: ignore[return-value]

        @cars.subscriber(Wash)
        async def wash(command: Wash) -> Washed:
            return Washed(ride_id=command.ride_id)

        @cars.subscriber(Release)
        async def release(command: Release) -> Released:
            return Released(ride_id=command.ride_id)

    return declare


SLOW: set[tuple[str, type[Command]]] = {("r1", Reserve), ("r2", Bill)}


async def _run_version_one(rides: Rides) -> dict[str, Envelope]:
    """Three rides of version 1: one waits in `reserve`, one in `bill`, and one has ended."""
    asked: dict[str, Envelope] = {}
    freeze([first().definition], rides.mesh.settings.schemas)
    await rides.deploy(included(first()), participant(asked, slow=SLOW))
    await rides.request("r1", "r2", "r3")
    assert len(asked) == 2
    assert rides.ended == ["Finished"]
    return asked


async def _answer(rides: Rides, asked: dict[str, Envelope]) -> None:
    """The late answers of the participant."""
    await rides.answer(asked["r1"], Reserved(ride_id="r1"))
    await rides.answer(asked["r2"], Billed(ride_id="r2"))


@EVERYWHERE
async def test_sagas_of_version_1_end_under_version_2(rides: Rides) -> None:
    asked = await _run_version_one(rides)
    freeze([second().definition], rides.mesh.settings.schemas)
    assert check_sagas([second().definition], rides.mesh.settings.schemas) == []
    await rides.deploy(included(second()), participant({}, slow=set()))
    await rides.request("r4")
    await _answer(rides, asked)
    assert len(rides.ended) == 4
    rows = {row.state.get("ride") or row.state["ride_id"]: row for row in await rides.rows()}
    assert {row.status for row in rows.values()} == {"completed"}
    assert {ride: (row.version, row.state.get("currency")) for ride, row in rows.items()} == {
        "r1": (2, "EUR"),
        "r2": (2, "EUR"),
        "r3": (1, None),  # it had ended
        "r4": (2, "USD"),
    }
    assert rows["r1"].steps["wash"]["status"] == "done"
    assert rows["r2"].steps["wash"]["status"] == "done"  # added before a step that had begun
    assert await rides.timers() == []


def with_a_driver() -> Saga[One]:
    """Version 2: the driver accepts, over HTTP, so her event finds the saga by its key."""
    saga = Saga("rides.ride", One, version=2, key=lambda state: state.ride_id)

    @saga.starts
    def begin(event: Requested) -> One:
        return One(ride_id=event.ride_id)

    @saga.step(ok=Reserved, timeout="1m")
    def reserve(state: One) -> Reserve:
        return Reserve(ride_id=state.ride_id)

    @reserve.undo(ok=Released)
    def release(state: One) -> Release:
        return Release(ride_id=state.ride_id)

    accepted = saga.wait(
        "accepted", ok=Accepted, timeout="1m", correlate=lambda event: event.ride_id
    )

    @saga.step(ok=Billed, timeout="1m", no_undo="the next bill corrects it")
    def bill(state: One) -> Bill:
        return Bill(ride_id=state.ride_id)

    saga.flow(reserve >> accepted >> bill)

    @saga.completed
    def finished(state: One) -> Finished:
        return Finished(ride_id=state.ride_id)

    return saga


@EVERYWHERE
async def test_sagas_of_before_there_were_keys_are_found_by_their_keys(rides: Rides) -> None:
    """Also by an event that is the first to come."""
    asked = await _run_version_one(rides)
    assert {row.key for row in await rides.rows()} == {None}
    await rides.deploy(included(with_a_driver()), participant({}, slow=set()))
    keys = {row.state["ride_id"]: row.key for row in await rides.rows()}
    assert keys == {"r1": "r1", "r2": "r2", "r3": None}  # the last one had ended
    await rides.accept("r1", "r2")
    open_rows = [row for row in await rides.rows() if row.is_open]
    assert all((row.details or {}).get("early") for row in open_rows)
    await _answer(rides, asked)
    assert await rides.statuses() == {"completed"}


async def test_a_removed_step_is_found_by_the_check_and_refused_at_the_start(rides: Rides) -> None:
    settings = rides.mesh.settings
    await _run_version_one(rides)
    with pytest.raises(Drift, match=r"2 sagas rides.ride of version 1 or older are open"):
        await refuse_open_sagas("rides.ride", 1, rides.mesh.settings)
    removed = second(keeps_reserve=False)
    freeze([removed.definition], settings.schemas)
    problems = check_sagas([removed.definition], settings.schemas)
    assert [problem.rule for problem in problems] == ["EM084", "EM086"]
    assert "the step reserve" in problems[0].summary
    with pytest.raises(Drift, match=r"1 in the step reserve.*eventmesh saga list rides"):
        await rides.deploy(included(removed))


async def test_a_forgotten_migration_is_found_by_the_check_and_parks_no_saga_for_good(
    rides: Rides,
) -> None:
    asked = await _run_version_one(rides)
    forgotten = second(migrates=False)
    freeze([forgotten.definition], rides.mesh.settings.schemas)
    problems = check_sagas([forgotten.definition], rides.mesh.settings.schemas)
    assert [problem.rule for problem in problems] == ["EM087"]
    await rides.deploy(included(forgotten), participant({}, slow=set()))
    await _answer(rides, asked)
    assert [row.status for row in await rides.rows()].count("parked") == 2
    # The code is corrected; an operator lets the sagas go on, with the answers that were held.
    await rides.deploy(included(second()), participant({}, slow=set()))
    await _retry_all(rides)
    await rides.mesh.quiet()
    assert await rides.statuses() == {"completed"}


async def _retry_all(rides: Rides) -> None:
    coordinator = coordinator_of(rides.service, None)
    for row in await rides.rows():
        if row.status == "parked":
            async with rides.service.transaction() as transaction:
                action = OperatorAction("retry", "the migration was added")
                await coordinator.operate(row.id, action, "test", transaction)


async def test_a_shape_that_was_changed_within_its_version_does_not_start(rides: Rides) -> None:
    await _run_version_one(rides)
    with pytest.raises(Drift, match=r"rides.ride v1: the step wash was added"):
        await rides.deploy(included(first(washes=True)))
