"""The demo stops waiting only when nothing progresses any more."""

from __future__ import annotations

from eventmesh.testing.clock import ManualClock
from services.demo.stuck_detector import StuckDetector


class Steps:
    """A number of steps, and how often it was read."""

    def __init__(self) -> None:
        self.number = 0
        self.reads = 0

    async def count(self) -> int:
        self.reads += 1
        return self.number


async def test_the_demo_is_stuck_after_a_time_without_any_step() -> None:
    clock, steps = ManualClock(), Steps()
    detector = StuckDetector(clock, 60.0)
    await clock.advance(59.0)
    assert not await detector.is_stuck(steps.count)
    await clock.advance(1.0)
    assert await detector.is_stuck(steps.count)


async def test_the_demo_is_not_stuck_while_steps_are_made_although_no_order_ends() -> None:
    clock, steps = ManualClock(), Steps()
    detector = StuckDetector(clock, 60.0)
    for _ in range(10):
        steps.number += 1
        await clock.advance(60.0)
        assert not await detector.is_stuck(steps.count)
    await clock.advance(60.0)
    assert await detector.is_stuck(steps.count)


async def test_steps_are_not_counted_while_orders_end() -> None:
    clock, steps = ManualClock(), Steps()
    detector = StuckDetector(clock, 60.0)
    for _ in range(10):
        await clock.advance(59.0)
        detector.progressed()
        assert not await detector.is_stuck(steps.count)
    assert steps.reads == 0
