"""The demo stops waiting when nothing progresses, and not before."""

from __future__ import annotations

from eventmesh.testing.clock import ManualClock
from services.demo.stuck_detector import StuckDetector


class Steps:
    """Counts steps, and how often it was asked for their number."""

    def __init__(self) -> None:
        self.taken = 0
        self.looks = 0

    async def count(self) -> int:
        self.looks += 1
        return self.taken


async def test_it_is_over_when_nothing_was_done_for_so_long() -> None:
    clock, steps = ManualClock(), Steps()
    detector = StuckDetector(clock, 60.0)
    await clock.advance(59.0)
    assert not await detector.is_stuck(steps.count)
    await clock.advance(1.0)
    assert await detector.is_stuck(steps.count)


async def test_it_goes_on_while_steps_are_taken_however_long_none_reaches_the_end() -> None:
    clock, steps = ManualClock(), Steps()
    detector = StuckDetector(clock, 60.0)
    for _ in range(10):
        steps.taken += 1
        await clock.advance(60.0)
        assert not await detector.is_stuck(steps.count)
    await clock.advance(60.0)
    assert await detector.is_stuck(steps.count)


async def test_steps_are_not_counted_while_the_end_comes_nearer() -> None:
    clock, steps = ManualClock(), Steps()
    detector = StuckDetector(clock, 60.0)
    for _ in range(10):
        await clock.advance(59.0)
        detector.progressed()
        assert not await detector.is_stuck(steps.count)
    assert steps.looks == 0
