"""`schema check --fix` for sagas, and workers that do not start: their saga differs from what is
frozen, or from the sagas that run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import until
from tests.integration.test_schema_cli import commit, found, git

if TYPE_CHECKING:
    from tests.integration.conftest import Project

TRIPS = """\
from eventmesh import Command, Event, Saga, Service
from pydantic import BaseModel

class Wanted(Event, name="trips.wanted", version=1):
    city: str

class Book(Command, name="trips.book_room", version=1):
    city: str

class Booked(Event, name="trips.booked", version=1):
    pass

class Trip(BaseModel):
    city: str

trip = Saga("trips.trip", Trip, version=1)

@trip.starts
def begin(event: Wanted) -> Trip:
    return Trip(city=event.city)

@trip.step(ok=Booked, timeout="1m", no_undo="a booking expires")
def book(state: Trip) -> Book:
    return Book(city=state.city)

trip.flow(book)

service = Service("trips")
wanted = service.publisher(Wanted)
service.include(trip)

@service.subscriber(Book)
async def answer(command: Book) -> Booked:
    return Booked()
"""

LOCK = "schemas/trips/trip-saga/v1.json"


@pytest.fixture
def trips(project: Project) -> Project:
    """A project with a saga, of which nothing is frozen."""
    project.service(TRIPS, "trips")
    return project


def change(project: Project, before: str, after: str) -> None:
    path = project.root / "services/trips/service.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def add_a_field(project: Project) -> None:
    change(
        project, "    city: str\n\ntrip = Saga", "    city: str\n    notes: str = ''\n\ntrip = Saga"
    )


def test_the_fix_freezes_the_shape_of_a_saga_beside_its_messages(trips: Project) -> None:
    fixed = trips.run("schema", "check", "--fix").succeeds("froze schemas/trips/wanted/v1.json")
    assert f"froze {LOCK}" in fixed
    assert found(trips) == []
    add_a_field(trips)
    change(trips, "version=1)\n\n@trip.starts", "version=2)\n\n@trip.starts")
    trips.run("schema", "check", "--fix").succeeds("froze schemas/trips/trip-saga/v2.json")
    assert found(trips) == []


def test_the_check_lists_a_saga_that_is_as_frozen_beside_the_messages(trips: Project) -> None:
    trips.run("schema", "freeze").succeeds()
    report = trips.run("schema", "check").succeeds("ok       trips.trip v1: as frozen")
    assert "ok       trips.wanted v1: as frozen" in report
    add_a_field(trips)
    ended = trips.run("schema", "check")
    ended.fails(4, "EM080: trips.trip v1")
    assert "ok       trips.trip v1" not in ended.out


def test_the_fix_says_what_to_do_about_a_saga_that_has_changed(trips: Project) -> None:
    trips.run("schema", "freeze").succeeds()
    frozen = (trips.root / LOCK).read_bytes()
    add_a_field(trips)
    ended = trips.run("schema", "check", "--fix")
    ended.fails(4, "EM080: trips.trip v1")
    assert "left to you: EM080 trips.trip v1: Sagas of version 1 may be running." in ended.out
    assert (trips.root / LOCK).read_bytes() == frozen


def test_a_new_version_that_strands_running_sagas_is_not_frozen(trips: Project) -> None:
    trips.run("schema", "freeze").succeeds()
    change(trips, "version=1)\n\n@trip.starts", "version=2)\n\n@trip.starts")
    change(trips, "def book(", "def book_room(")
    change(trips, "trip.flow(book)", "trip.flow(book_room)")
    ended = trips.run("schema", "check", "--fix")
    ended.fails(4, "EM084")
    assert "left to you: EM084 trips.trip v2: Keep the step book under its name" in ended.out
    assert "solve the other problems of this saga before it is frozen" in ended.out
    assert not (trips.root / LOCK).with_name("v2.json").exists()


def test_the_lock_file_of_a_saga_that_was_deleted_is_restored(trips: Project) -> None:
    trips.environment |= {
        f"GIT_{who}_{what}": "t@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    trips.run("schema", "freeze").succeeds()
    frozen = (trips.root / LOCK).read_bytes()
    git(trips, "init", "-q", "-b", "main")
    commit(trips)
    (trips.root / LOCK).unlink()
    [lost] = [
        each for each in found(trips, "--against", "main", "trips") if each["rule"] == "EM034"
    ]
    assert lost["subject"] == "trips.trip v1"
    assert "sagas of this shape may still be running" in lost["summary"]
    trips.run("schema", "check", "--against", "main", "--fix").succeeds(f"restored {LOCK}")
    assert (trips.root / LOCK).read_bytes() == frozen


def test_a_deleted_lock_file_does_not_hide_that_the_saga_has_changed(trips: Project) -> None:
    trips.environment |= {
        f"GIT_{who}_{what}": "t@example.org"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    trips.run("schema", "freeze").succeeds()
    git(trips, "init", "-q", "-b", "main")
    commit(trips)
    frozen = (trips.root / LOCK).read_bytes()
    (trips.root / LOCK).unlink()
    add_a_field(trips)
    ended = trips.run("schema", "check", "--against", "main", "--fix")
    ended.fails(4, "EM081")
    assert "left to you: EM080 trips.trip v1" in ended.out
    assert (trips.root / LOCK).read_bytes() == frozen


PUBLISH = """
import asyncio

from services.trips.service import Wanted, service, wanted


async def main() -> None:
    async with service:
        await wanted.publish(Wanted(city="Lisbon"))


asyncio.run(main())
"""


def test_a_worker_does_not_start_with_a_saga_that_differs_from_its_lock_file(
    trips: Project,
) -> None:
    trips.run("schema", "freeze").succeeds()
    add_a_field(trips)
    program = sys.executable, "-m", "eventmesh", "worker", "trips"
    for worker in trips.start_program(*program), trips.start_as_typed("worker", "trips"):
        ended = worker.ended()
        ended.fails(4, "trips.trip v1", "the field 'notes' of the state was added")
        assert "eventmesh schema freeze" in ended.said


def test_a_worker_does_not_start_while_sagas_wait_in_a_step_that_was_renamed(
    trips: Project,
) -> None:
    change(trips, "-> Booked:\n    return Booked()", "-> Booked | None:\n    return None")
    worker = trips.start("worker", "trips")
    worker.until_says("worker is ready")
    trips.python(PUBLISH).succeeds()

    def waits() -> bool:
        return "book: 1" in trips.run("saga", "list", "trips").succeeds()

    until(waits, "a saga that waits for its booking")
    worker.drain()
    change(trips, "def book(", "def book_room(")
    change(trips, "trip.flow(book)", "trip.flow(book_room)")
    ended = trips.run("worker", "trips")
    ended.fails(4, "1 in the step book", "eventmesh saga list trips --step book")


def test_a_version_that_open_sagas_keep_is_not_retired(trips: Project) -> None:
    change(trips, "version=1)\n\n@trip.starts", "version=1, key=str)\n\n@trip.starts")
    change(trips, "trip.flow(book)", "trip.flow(book >> end)")
    change(
        trips,
        "@trip.step",
        'class Over(Event, name="trips.over", version=1):\n    city: str\n\n'
        'end = trip.wait("end", ok=Over, timeout=None, correlate=str)\n\n@trip.step',
    )
    trips.run("schema", "freeze").succeeds()
    worker = trips.start("worker", "trips")
    worker.until_says("worker is ready")
    trips.python(PUBLISH).succeeds()

    def waits() -> bool:
        return "end: 1" in trips.run("saga", "list", "trips").succeeds()

    until(waits, "a saga that has got its booking")
    worker.drain()
    change(trips, 'name="trips.booked", version=1', 'name="trips.booked", version=2')
    retire = "schema", "retire", "trips.booked", "1"
    trips.run(*retire).fails(4, "1 kept by open sagas of trips", "such sagas have ended")
    [saga] = json.loads(trips.run("saga", "list", "trips", "--json").succeeds())["sagas"]
    trips.run("saga", "cancel", "trips", saga["id"], "--reason", "it is over").succeeds()
    trips.run(*retire).succeeds("retired trips.booked v1")
