"""A process that is stopped anywhere has, once it is started again, done everything once.

Two services on one broker, and messages that take every turn (`shop`); a worker that is stopped at
a point, as by SIGKILL; what must be true in the end (`verdict`). The long forms, which stop at
every point for real, are `soak`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.crash.conftest import Record
from tests.crash.lanes import Lanes
from tests.crash.points import Point
from tests.crash.report import Row
from tests.crash.world import World, on_files

SEED = 5
T = TypeVar("T")

FIRST = 3
WRITES = ("INSERT", "UPDATE", "DELETE")
NEVER_MET = 0.1
"""Which part of the points of one run another may not come to, as what happens at the same time
happens in another order: asyncio has tasks in sets, and a server answers sooner or later."""

MOST_ROUNDS = 4
"""In which schedules are played that did not come to their kills before."""

batches = pytest.mark.parametrize("batches", ["whole", "in parts"])
PARTS = 8
"""In which all points on a server are gone through, which takes long."""

part = pytest.mark.parametrize(
    "part", [0, *(pytest.param(each, marks=pytest.mark.soak) for each in range(1, PARTS + 1))]
)
"""Some points only, or one part of all."""

amount = pytest.mark.parametrize("amount", ["some", pytest.param("all", marks=pytest.mark.soak)])


@batches
def test_whatever_a_kill_at_any_point_leaves_in_the_files_everything_is_done_once(
    lanes: Lanes, file_worlds: list[World], tmp_path: Path, record: Record, batches: str
) -> None:
    whole = batches == "whole"
    world = replace(file_worlds[0], whole=whole)
    walked = lanes.ask("walk", world, states=str(tmp_path / "left"))
    points, left = points_of(walked), walked["left"]
    numbers = sorted(set(left))
    worlds = [on_files(tmp_path / "left" / str(number), whole=whole) for number in numbers]
    for number, told in zip(numbers, lanes.recover(worlds), strict=True):
        assert not told["faults"], points[left.index(number)]
    record(Row("sqlite", f"what any kill leaves, batches {batches}", points, len(worlds), 0))


@amount
@batches
def test_after_a_real_kill_everything_is_done_once(
    lanes: Lanes, file_worlds: list[World], record: Record, batches: str, amount: str
) -> None:
    worlds = [replace(world, whole=batches == "whole") for world in file_worlds]
    points = points_of(lanes.ask("play", worlds[0], kills=[]))
    if amount == "some":
        points = sample(points, 15)
    killed = play_enough(lanes, worlds, [[point] for point in points], 1 - NEVER_MET)
    record(Row("sqlite", f"killed, batches {batches}", points, len(killed), len(killed)))


@part
def test_after_a_kill_on_postgresql_everything_is_done_once(
    lanes: Lanes, postgres_worlds: list[World], record: Record, postgres_name: str, part: int
) -> None:
    points = points_of(lanes.ask("play", postgres_worlds[0], kills=[]))
    some = sample(writes(points), 18) + sample(points, 12)
    points = points[part - 1 :: PARTS] if part else some
    schedules = [[point] for point in points]
    killed = play_enough(lanes, postgres_worlds, schedules, 1 - NEVER_MET)
    what = f"killed, part {part} of {PARTS}" if part else "killed"
    record(Row(postgres_name, what, [point for [point] in killed], len(killed), len(killed)))


@amount
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_after_a_kill_while_it_recovers_from_another_everything_is_done_once(
    lanes: Lanes, request: pytest.FixtureRequest, record: Record, database: str, amount: str
) -> None:
    worlds = worlds_on(request, database)
    points = points_of(lanes.ask("play", worlds[0], kills=[]))
    chance = random.Random(SEED)  # noqa: S311  # the same each time
    schedules = [
        (chance.randint(1, len(points)), chance.randint(1, len(points) // 2))
        for _ in range(6 if amount == "some" else 400)
    ]
    killed = play_enough(lanes, worlds, schedules, 1 / len(schedules))
    where = [points[first - 1] for first, _ in killed]
    record(Row(name_of(request, database), "killed twice", where, len(killed), 2 * len(killed)))


@amount
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_when_one_of_two_workers_is_killed_the_other_does_everything_once(
    lanes: Lanes, request: pytest.FixtureRequest, record: Record, database: str, amount: str
) -> None:
    worlds = worlds_on(request, database)
    points = points_of(lanes.ask("outlive", worlds[0], kills=[]))
    schedules = [[number] for number in range(1, len(points) + 1)]
    if amount == "some":
        schedules = sample(schedules, 8)
    enough = 0.8 if database == "sqlite" else 0.5
    killed = play_enough(lanes, worlds, schedules, enough, "outlive")
    where = [points[number - 1] for [number] in killed]
    record(Row(name_of(request, database), "one of two killed", where, len(killed), len(killed)))


def worlds_on(request: pytest.FixtureRequest, database: str) -> list[World]:
    fixture = "file_worlds" if database == "sqlite" else "postgres_worlds"
    worlds: list[World] = request.getfixturevalue(fixture)
    return worlds


def name_of(request: pytest.FixtureRequest, database: str) -> str:
    return database if database == "sqlite" else request.getfixturevalue("postgres_name")


def points_of(told: dict[str, Any]) -> list[Point]:
    """All points of a run that nobody disturbs."""
    assert not told["faults"]
    return [(kind, place, number) for kind, place, number in told["points"]]


def writes(points: Sequence[Point]) -> list[Point]:
    """Those right after a commit, and the first after each statement that changes something; what
    is not committed, a server forgets."""
    return [
        (kind, place, number)
        for kind, place, number in points
        if kind == "statement"
        and (
            place == "after COMMIT"
            or (place.split()[:2] in [["after", write] for write in WRITES] and number <= FIRST)
        )
    ]


def play_enough(
    lanes: Lanes,
    worlds: Sequence[World],
    schedules: Sequence[Sequence[Any]],
    enough: float,
    do: str = "play",
) -> list[Sequence[Any]]:
    """Play these, and again those that came to no kill, until enough of them, as a part of one,
    have; returns those that were killed."""
    killed: list[Sequence[Any]] = []
    for _ in range(MOST_ROUNDS):
        killed += play(lanes, worlds, [each for each in schedules if each not in killed], do)
        if len(killed) >= len(schedules) * enough:
            return killed
    raise AssertionError(f"{len(killed)} of {len(schedules)} came to their kills")


def play(
    lanes: Lanes, worlds: Sequence[World], schedules: Sequence[Sequence[Any]], do: str = "play"
) -> list[Sequence[Any]]:
    """Play these, with all well in the end; returns those that were killed as often as asked."""
    killed = []
    for kills, told in zip(schedules, lanes.play(worlds, schedules, do), strict=True):
        assert not told["faults"], kills
        if all(told["reached"]):
            killed.append(kills)
    return killed


def sample(all_: Sequence[T], number: int) -> list[T]:
    """The same each time."""
    return random.Random(SEED).sample(all_, min(number, len(all_)))  # noqa: S311
