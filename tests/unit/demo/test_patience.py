"""The demo gives up when nothing moves, and not before."""

from __future__ import annotations

from eventmesh.testing.clock import ManualClock
from services.demo.patience import Patience


class Steps:
    """Taken on the way; counts how often they were counted."""

    def __init__(self) -> None:
        self.taken = 0
        self.looks = 0

    async def count(self) -> int:
        self.looks += 1
        return self.taken


async def test_it_is_over_when_nothing_was_done_for_so_long() -> None:
    clock, steps = ManualClock(), Steps()
    patience = Patience(clock, 60.0)
    await clock.advance(59.0)
    assert not await patience.over(steps.count)
    await clock.advance(1.0)
    assert await patience.over(steps.count)


async def test_it_goes_on_while_steps_are_taken_however_long_none_reaches_the_end() -> None:
    clock, steps = ManualClock(), Steps()
    patience = Patience(clock, 60.0)
    for _ in range(10):
        steps.taken += 1
        await clock.advance(60.0)
        assert not await patience.over(steps.count)
    await clock.advance(60.0)
    assert await patience.over(steps.count)


async def test_steps_are_not_counted_while_the_end_comes_nearer() -> None:
    clock, steps = ManualClock(), Steps()
    patience = Patience(clock, 60.0)
    for _ in range(10):
        await clock.advance(59.0)
        patience.moved()
        assert not await patience.over(steps.count)
    assert steps.looks == 0
