"""One measurement for all who look."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from eventmesh.clock import SystemClock
from eventmesh.dashboard.sampler import KEPT, REST_AFTER, Sampler
from eventmesh.operations.status import BrokerStatus, MeshStatus

STATUS = MeshStatus(datetime(2026, 1, 1, tzinfo=UTC), BrokerStatus("memory://"), (), (), ())


class OwnedClock(SystemClock):
    """Sleeps until the test says that the interval is over."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.over = asyncio.Semaphore(0)

    def monotonic(self) -> float:
        return self.passed

    async def sleep(self, seconds: float) -> None:
        await self.over.acquire()
        self.passed += seconds


class Mesh:
    def __init__(self) -> None:
        self.asked = 0

    async def measure(self) -> MeshStatus:
        self.asked += 1
        return STATUS


async def test_however_many_look_the_mesh_is_asked_once_in_an_interval() -> None:
    clock, mesh = OwnedClock(), Mesh()
    sampler = Sampler(mesh.measure, clock, 2.0)
    assert mesh.asked == 0  # nothing before somebody looks
    first = await asyncio.gather(*(sampler.latest(5) for _ in range(20)))
    assert {each.number for each in first if each} == {1}
    waiting = [asyncio.ensure_future(sampler.after(1)) for _ in range(20)]
    clock.over.release()
    assert {each.number for each in await asyncio.gather(*waiting)} == {2}
    assert mesh.asked == 2
    await sampler.close()


async def test_only_the_last_measurements_are_remembered() -> None:
    clock = OwnedClock()
    sampler = Sampler(Mesh().measure, clock, 0.1)
    for number in range(KEPT + 10):
        await sampler.after(number)
        clock.over.release()
    assert sampler.history[0].number > 1
    assert len(sampler.history) == KEPT
    await sampler.close()


async def test_it_rests_when_nobody_looks_and_begins_again() -> None:
    clock, mesh = OwnedClock(), Mesh()
    sampler = Sampler(mesh.measure, clock, REST_AFTER)
    await sampler.latest(5)
    task = sampler._task
    assert task is not None
    clock.over.release()
    await task
    assert mesh.asked == 1
    assert (await sampler.after(1)).number == 2
    await sampler.close()


async def test_a_slow_measurement_does_not_hold_up_a_page() -> None:
    never = asyncio.Event()

    async def measure() -> MeshStatus:
        await never.wait()
        return STATUS

    sampler = Sampler(measure, OwnedClock(), 2.0)
    assert await sampler.latest(0.01) is None
    await sampler.close()


async def test_who_looks_sees_a_bug_and_the_next_asks_again() -> None:
    answers = iter([ValueError("a bug"), STATUS])

    async def measure() -> MeshStatus:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    sampler = Sampler(measure, OwnedClock(), 2.0)
    with pytest.raises(ValueError, match="a bug"):
        await sampler.latest(5)
    assert await sampler.latest(5) is not None
    await sampler.close()
