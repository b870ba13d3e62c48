from __future__ import annotations

import asyncio

from eventmesh.runtime.backoff import Reconnect
from eventmesh.testing.clock import ManualClock


async def waits_for(reconnect: Reconnect, clock: ManualClock, seconds: float) -> bool:
    """Whether a wait that starts now takes at most this many seconds, and at least half of them."""
    waiting = asyncio.create_task(reconnect.wait())
    await clock.advance(seconds * 0.499)
    too_early = waiting.done()
    await clock.advance(seconds * 0.502)
    await asyncio.wait([waiting], timeout=0)
    return waiting.done() and not too_early


async def test_each_consecutive_failure_doubles_the_wait_up_to_two_seconds() -> None:
    clock = ManualClock()
    reconnect = Reconnect(clock)
    for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        assert await waits_for(reconnect, clock, seconds), seconds


async def test_a_success_resets_the_wait_to_the_shortest() -> None:
    clock = ManualClock()
    reconnect = Reconnect(clock)
    for seconds in (0.1, 0.2, 0.4):
        assert await waits_for(reconnect, clock, seconds)
    reconnect.succeeded()
    assert await waits_for(reconnect, clock, 0.1)
