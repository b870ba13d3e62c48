from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

from eventmesh.clock import SystemClock
from eventmesh.testing.clock import ManualClock


def test_ids_of_the_system_clock_are_uuids_of_version_7_sorted_by_time() -> None:
    clock = SystemClock()
    ids = [clock.new_id() for _ in range(1000)]
    assert {UUID(each).version for each in ids} == {7}
    assert sorted(ids) == ids
    assert len(set(ids)) == 1000


def test_the_time_of_the_system_clock_has_the_time_zone_utc() -> None:
    assert SystemClock().now().tzinfo is UTC


def test_the_time_of_a_manual_clock_changes_only_when_a_test_advances_it() -> None:
    clock = ManualClock()
    assert clock.now() == clock.now() == datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.monotonic() == 0


async def test_advancing_a_manual_clock_advances_wall_and_monotonic_time() -> None:
    clock = ManualClock()
    await clock.advance(1.5)
    assert clock.now() == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=1.5)
    assert clock.monotonic() == 1.5


async def test_sleepers_wake_in_order_at_their_exact_times() -> None:
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, *seconds: float) -> None:
        for each in seconds:
            await clock.sleep(each)
            woken.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(sleeper("a", 2, 3))
        tasks.create_task(sleeper("b", 1, 1))
        tasks.create_task(sleeper("c", 2))
        await clock.advance(10)
    assert woken == [("b", 1), ("a", 2), ("c", 2), ("b", 2), ("a", 5)]
    assert clock.monotonic() == 10


async def test_a_sleeper_does_not_wake_early() -> None:
    clock = ManualClock()
    sleeping = asyncio.create_task(clock.sleep(2))
    await clock.advance(1.999)
    assert not sleeping.done()
    await clock.advance(0.001)
    assert sleeping.done()


def test_ids_of_a_manual_clock_are_uuids_of_version_7_and_reproducible() -> None:
    one, other = ManualClock(), ManualClock()
    ids = [one.new_id() for _ in range(3)]
    assert ids == [other.new_id() for _ in range(3)] == sorted(set(ids))
    assert {UUID(each).version for each in ids} == {7}
