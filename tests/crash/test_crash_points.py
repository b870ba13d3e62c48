"""Wherever a worker is killed: once it is restarted, every message has taken effect exactly once.

Two services on one broker handle messages of every kind (`services`). A worker is killed at a
crash point, as by SIGKILL, and started again; then `invariants` checks the databases and the
broker. The long forms, which kill at every point for real, are marked `soak`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.crash.conftest import Record
from tests.crash.crash_points import Point
from tests.crash.deployment import Deployment, sqlite_deployment
from tests.crash.fork_server_pool import ForkServerPool
from tests.crash.report import Row

SEED = 5
T = TypeVar("T")

FIRST = 3
WRITES = ("INSERT", "UPDATE", "DELETE")
NEVER_MET = 0.1
"""The share of one run's points that another run may not reach, because concurrent steps happen in
another order: asyncio keeps tasks in sets, and a server answers sooner or later."""

MOST_ROUNDS = 4
"""How often schedules that did not reach their kills are run again."""

batches = pytest.mark.parametrize("batches", ["atomic", "one by one"])
PARTS = 8
"""All points on a server take long, so the soak goes through them in this many parts."""

part = pytest.mark.parametrize(
    "part", [0, *(pytest.param(each, marks=pytest.mark.soak) for each in range(1, PARTS + 1))]
)
"""0: a sample of the points; otherwise one part of all."""

amount = pytest.mark.parametrize("amount", ["some", pytest.param("all", marks=pytest.mark.soak)])


@amount
@batches
def test_a_restart_after_a_kill_at_any_point_does_everything_once(
    pool: ForkServerPool,
    sqlite_deployments: list[Deployment],
    tmp_path: Path,
    record: Record,
    batches: str,
    amount: str,
) -> None:
    atomic_batches = batches == "atomic"
    deployment = replace(sqlite_deployments[0], atomic_batches=atomic_batches)
    taken = pool.call("take_snapshots", deployment, snapshot_folder=str(tmp_path / "left"))
    points, left = points_of(taken), taken["left"]
    numbers = sorted(set(left))[:: 12 if amount == "some" else 1]
    deployments = [
        sqlite_deployment(tmp_path / "left" / str(number), atomic_batches=atomic_batches)
        for number in numbers
    ]
    for number, result in zip(numbers, pool.recover(deployments), strict=True):
        assert not result["violations"], points[left.index(number)]
    record(Row("sqlite", f"what any kill leaves, batches {batches}", points, len(deployments), 0))


@amount
@batches
def test_a_restart_after_a_real_kill_does_everything_once(
    pool: ForkServerPool,
    sqlite_deployments: list[Deployment],
    record: Record,
    batches: str,
    amount: str,
) -> None:
    deployments = [
        replace(deployment, atomic_batches=batches == "atomic") for deployment in sqlite_deployments
    ]
    points = points_of(pool.call("kill_and_recover", deployments[0], kills=[]))
    if amount == "some":
        points = sample(points, 3)
    killed = kill_enough(pool, deployments, [[point] for point in points], 1 - NEVER_MET)
    record(Row("sqlite", f"killed, batches {batches}", points, len(killed), len(killed)))


@part
def test_a_restart_after_a_kill_on_postgresql_does_everything_once(
    pool: ForkServerPool,
    postgres_deployments: list[Deployment],
    record: Record,
    postgres_name: str,
    part: int,
) -> None:
    points = points_of(pool.call("kill_and_recover", postgres_deployments[0], kills=[]))
    some = sample(writes(points), 4) + sample(points, 1)
    points = points[part - 1 :: PARTS] if part else some
    schedules = [[point] for point in points]
    killed = kill_enough(pool, postgres_deployments, schedules, 1 - NEVER_MET)
    what = f"killed, part {part} of {PARTS}" if part else "killed"
    record(Row(postgres_name, what, [point for [point] in killed], len(killed), len(killed)))


@amount
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_second_kill_during_recovery_loses_and_doubles_nothing(
    pool: ForkServerPool, request: pytest.FixtureRequest, record: Record, database: str, amount: str
) -> None:
    deployments = deployments_on(request, database)
    points = points_of(pool.call("kill_and_recover", deployments[0], kills=[]))
    chance = random.Random(SEED)  # noqa: S311  # the same each time
    schedules = [
        (chance.randint(1, len(points)), chance.randint(1, len(points) // 2))
        for _ in range(2 if amount == "some" else 400)
    ]
    killed = kill_enough(pool, deployments, schedules, 1 / len(schedules))
    where = [points[first - 1] for first, _ in killed]
    record(Row(name_of(request, database), "killed twice", where, len(killed), 2 * len(killed)))


@amount
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_when_one_of_two_workers_is_killed_the_other_completes_everything_once(
    pool: ForkServerPool, request: pytest.FixtureRequest, record: Record, database: str, amount: str
) -> None:
    deployments = deployments_on(request, database)
    points = points_of(pool.call("kill_one_of_two", deployments[0], kills=[]))
    schedules = [[number] for number in range(1, len(points) + 1)]
    if amount == "some":
        schedules = sample(schedules, 4)
    enough = 0.8 if database == "sqlite" else 0.5
    killed = kill_enough(pool, deployments, schedules, enough, "kill_one_of_two")
    where = [points[number - 1] for [number] in killed]
    record(Row(name_of(request, database), "one of two killed", where, len(killed), len(killed)))


@amount
def test_a_restart_after_a_kill_at_any_point_ends_every_saga_in_its_way(
    pool: ForkServerPool,
    sqlite_deployments: list[Deployment],
    tmp_path: Path,
    record: Record,
    amount: str,
) -> None:
    first = replace(sqlite_deployments[0], has_sagas=True)
    taken = pool.call("take_snapshots", first, snapshot_folder=str(tmp_path / "left"))
    points, left = points_of(taken), taken["left"]
    numbers = sorted(set(left))[:: 12 if amount == "some" else 1]
    deployments = [
        replace(sqlite_deployment(tmp_path / "left" / str(number)), has_sagas=True)
        for number in numbers
    ]
    for number, result in zip(numbers, pool.recover(deployments), strict=True):
        assert not result["violations"], points[left.index(number)]
    record(Row("sqlite", "sagas, what any kill leaves", points, len(deployments), 0))


@amount
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_a_restart_after_a_real_kill_ends_every_saga_in_its_way(
    pool: ForkServerPool, request: pytest.FixtureRequest, record: Record, database: str, amount: str
) -> None:
    deployments = [replace(each, has_sagas=True) for each in deployments_on(request, database)]
    points = points_of(pool.call("kill_and_recover", deployments[0], kills=[]))
    if amount == "some":
        points = sample(writes(points), 3)
    killed = kill_enough(pool, deployments, [[point] for point in points], 1 - NEVER_MET)
    where = [point for [point] in killed]
    record(Row(name_of(request, database), "sagas, killed", where, len(killed), len(killed)))


def deployments_on(request: pytest.FixtureRequest, database: str) -> list[Deployment]:
    fixture = "sqlite_deployments" if database == "sqlite" else "postgres_deployments"
    deployments: list[Deployment] = request.getfixturevalue(fixture)
    return deployments


def name_of(request: pytest.FixtureRequest, database: str) -> str:
    return database if database == "sqlite" else request.getfixturevalue("postgres_name")


def points_of(result: dict[str, Any]) -> list[Point]:
    """All points of an undisturbed run."""
    assert not result["violations"]
    return [(kind, place, number) for kind, place, number in result["points"]]


def writes(points: Sequence[Point]) -> list[Point]:
    """The points right after a commit, and the first after each kind of writing statement: a
    server forgets what is not committed, so most other points leave the same state."""
    return [
        (kind, place, number)
        for kind, place, number in points
        if kind == "statement"
        and (
            place == "after COMMIT"
            or (place.split()[:2] in [["after", write] for write in WRITES] and number <= FIRST)
        )
    ]


def kill_enough(
    pool: ForkServerPool,
    deployments: Sequence[Deployment],
    schedules: Sequence[Sequence[Any]],
    enough: float,
    command: str = "kill_and_recover",
) -> list[Sequence[Any]]:
    """Run these schedules, and again those that did not reach their kills, until the share
    `enough` has, or all but one; returns the schedules that were killed."""
    killed: list[Sequence[Any]] = []
    needed = min(len(schedules) * enough, len(schedules) - 1)
    for _ in range(MOST_ROUNDS):
        killed += kill_each(
            pool, deployments, [each for each in schedules if each not in killed], command
        )
        if len(killed) >= needed:
            return killed
    raise AssertionError(f"{len(killed)} of {len(schedules)} schedules reached their kills")


def kill_each(
    pool: ForkServerPool,
    deployments: Sequence[Deployment],
    schedules: Sequence[Sequence[Any]],
    command: str = "kill_and_recover",
) -> list[Sequence[Any]]:
    """Run these schedules and require that none violates an invariant; returns those in which
    every kill was reached."""
    killed = []
    for kills, result in zip(
        schedules, pool.kill_each(deployments, schedules, command), strict=True
    ):
        assert not result["violations"], kills
        if all(result["reached"]):
            killed.append(kills)
    return killed


def sample(all_: Sequence[T], number: int) -> list[T]:
    """A random sample, the same each time."""
    return random.Random(SEED).sample(all_, min(number, len(all_)))  # noqa: S311
