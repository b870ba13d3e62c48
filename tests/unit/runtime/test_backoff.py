from __future__ import annotations

import asyncio

from eventmesh.runtime.backoff import Reconnect
from eventmesh.testing.clock import ManualClock


async def has_waited(reconnect: Reconnect, clock: ManualClock, seconds: float) -> bool:
    """Whether a wait that begins now is over after this many seconds, and not before half."""
    waiting = asyncio.create_task(reconnect.wait())
    await clock.advance(seconds * 0.499)
    too_early = waiting.done()
    await clock.advance(seconds * 0.502)
    await asyncio.wait([waiting], timeout=0)
    return waiting.done() and not too_early


async def test_each_failure_in_a_row_doubles_the_wait_up_to_two_seconds() -> None:
    clock = ManualClock()
    reconnect = Reconnect(clock)
    for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        assert await has_waited(reconnect, clock, seconds), seconds


async def test_success_begins_again_with_the_shortest_wait() -> None:
    clock = ManualClock()
    reconnect = Reconnect(clock)
    for seconds in (0.1, 0.2, 0.4):
        assert await has_waited(reconnect, clock, seconds)
    reconnect.succeeded()
    assert await has_waited(reconnect, clock, 0.1)
