"""Where a test interrupts a connection, so that every step of the protocol is interrupted.

A scenario is run once undisturbed, behind a proxy that records where each part ends that it
forwarded: a request, an answer, a frame. The scenario is then interrupted in the middle of each
part, and at the end of each part to the server. These are different things to survive: half a
COMMIT, and a COMMIT whose answer is lost. The end of an answer is left out, because what is lost
then is the answer to the next request. Where there are many parts, as for RabbitMQ's queues and
exchanges, which are declared one by one, two of three are interrupted: requests in turn in their
middle and at their end. `make soak` interrupts it after every few bytes instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from itertools import count, pairwise

import pytest

from tests.support.proxy import Direction, Proxy

FEW = 30
"""A scenario of fewer parts than this is interrupted at the end of each, in either direction."""

MANY = 40
"""A scenario of more parts than this is interrupted in two of three of them."""

every_position = pytest.mark.parametrize(
    "every_position",
    [False, pytest.param(True, marks=pytest.mark.soak)],
    ids=["each part", "every position"],
)
"""Gives a test the argument `every_position`, which is true in the soak."""


async def cut_positions(
    proxy: Proxy,
    direction: Direction,
    run: Callable[[], Awaitable[object]],
    *,
    step: int,
    every_position: bool,
) -> Iterator[int]:
    """Returns numbers of bytes in ascending order, without end: the scenario may be longer than the
    undisturbed `run` by what the interruptions left behind, so ever wider steps follow the recorded
    positions. In the soak, positions are `step` bytes apart."""
    if every_position:
        return count(1, step)
    begin, known = proxy.passed[direction], len(proxy.ends[direction])
    await run()
    ends = [0, *(end - begin for end in proxy.ends[direction][known:])]
    middles = [(one + other + 1) // 2 for one, other in pairwise(ends)]
    positions = {*middles}
    if len(middles) > MANY:
        others = ends[2::3] if direction is Direction.TO_SERVER else middles[1::3]
        positions = {*middles[::3], *others}
    elif direction is Direction.TO_SERVER or len(ends) < FEW:
        positions.update(ends[1:])
    return _and_beyond(sorted(positions))


def _and_beyond(positions: list[int]) -> Iterator[int]:
    yield from positions
    position = positions[-1]
    while True:
        position += 1 + position // 16
        yield position
