"""Lanes: several messages of one subscription handled at a time, while those of one key are not.

A message's key picks its lane, and a lane handles one group after another. So within one process
two messages of one key never run side by side, and run in the order of their delivery. A message
that is retried is delivered again later, after the others of its key; and other processes that
consume the same subscription have lanes of their own, and may handle messages of the key meanwhile.
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
    """The consumer as this many lanes, each a consumer of its part.

    `most` deliveries are dealt out at a time. Once the broker is lost in one lane, or while
    receiving, every lane is Unreachable.
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
    """The lane of a message's key, or of a message without one."""
    return part_of(envelope.key, envelope.id, count)


class _Lane:
    """The part of a consumer's deliveries that has come to one lane."""

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
    """Let every lane hear why no more will come."""
    error = None if dealing.cancelled() else dealing.exception()
    for lane in lanes:
        lane.end(error or Unreachable("The subscription is not consumed any more."))
