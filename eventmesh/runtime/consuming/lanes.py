"""Lanes: several messages of one subscription are handled at a time, but never two of one key.

A hash of the message's key picks its lane, and a lane handles one group after another. So within
one process, messages of one key run one after another, in the order of their delivery:

    received   a1 b1 a2 c1 b2 a3
    lane 0     a1 a2 a3
    lane 1     b1 c1 b2

This order has two limits. A retried message is delivered again later, after others of its key. And
each process has lanes of its own, so two processes may handle messages of one key at the same time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from eventmesh.errors import Unreachable
from eventmesh.transports.base import Consumer, Delivery
from eventmesh.transports.outcome import Outcome
from eventmesh.wire.envelope import Envelope, part_of


@asynccontextmanager
async def split(consumer: Consumer, count: int, most: int) -> AsyncIterator[Sequence[Consumer]]:
    """The consumer as `count` lanes, each a consumer of its own part.

    At most `most` deliveries are received at a time and dealt out. Once the broker is lost, in one
    lane or while receiving, every lane raises Unreachable.
    """
    if count == 1:
        yield [consumer]
        return
    lanes: list[_Lane] = []
    lanes.extend(_Lane(consumer, lanes) for _ in range(count))
    dealing = asyncio.create_task(_deal(consumer, lanes, most))
    dealing.add_done_callback(lambda _: _end(lanes, dealing))
    try:
        yield lanes
    finally:
        dealing.cancel()
        await asyncio.wait([dealing])


def lane_of(envelope: Envelope, count: int) -> int:
    """The number of a message's lane: by its key, or by its id if it has none."""
    return part_of(envelope.key, envelope.id, count)


class _Lane:
    """Deliveries that were dealt to one lane and are not received by it yet."""

    def __init__(self, consumer: Consumer, lanes: Sequence[_Lane]) -> None:
        self._consumer = consumer
        self._all = lanes
        self._waiting: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._lost: BaseException | None = None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while self._lost is None and not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        if self._lost is not None:
            raise self._lost
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        try:
            await self._consumer.settle(settlements)
        except Unreachable as error:
            for lane in self._all:
                lane.end(error)
            raise

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._changed.set()

    def end(self, error: BaseException) -> None:
        self._lost = self._lost or error
        self._changed.set()


async def _deal(consumer: Consumer, lanes: Sequence[_Lane], most: int) -> None:
    while True:
        for delivery in await consumer.receive(most):
            lanes[lane_of(delivery.envelope, len(lanes))].put(delivery)


def _end(lanes: Sequence[_Lane], dealing: asyncio.Task[None]) -> None:
    """End every lane with the reason why no more deliveries will come."""
    error = None if dealing.cancelled() else dealing.exception()
    for lane in lanes:
        lane.end(error or Unreachable("The subscription is not consumed any more."))
