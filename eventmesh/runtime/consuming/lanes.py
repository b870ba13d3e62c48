"""Lanes: several messages of one subscription are handled at a time, but never two of one key.

A hash of the message's key picks its lane, and a lane handles one group after another. So within
one process, messages of one key run one after another, in the order of their delivery:

    received   a1 b1 a2 c1 b2 a3
    lane 0     a1 a2 a3
    lane 1     b1 c1 b2

This order has two limits. A retried message is delivered again later, after others of its key. And
each process has lanes of its own, so two processes may handle messages of one key at the same time.
A subscription with an order has neither: there, what waits in a lane behind a failed message of its
key is dropped, because it comes again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager

from eventmesh.errors import Unreachable
from eventmesh.transports.base import Consumer, Delivery
from eventmesh.transports.outcome import Done, Outcome
from eventmesh.wire.envelope import Envelope, part_of


@asynccontextmanager
async def split(
    consumer: Consumer, count: int, most: int, *, is_ordered: bool = False
) -> AsyncIterator[Sequence[Consumer]]:
    """The consumer as `count` lanes, each a consumer of its own part.

    At most `most` deliveries are received at a time and dealt out. Once the broker is lost, in one
    lane or while receiving, every lane raises Unreachable.
    """
    if count == 1:
        yield [consumer]
        return
    lanes: list[_Lane] = []
    lanes.extend(_Lane(consumer, lanes, is_ordered=is_ordered) for _ in range(count))
    dealing = asyncio.create_task(_deal(consumer, lanes, most, is_ordered=is_ordered))
    dealing.add_done_callback(lambda _: _end(lanes, dealing))
    try:
        yield lanes
    finally:
        dealing.cancel()
        await asyncio.wait([dealing])


def lane_of(envelope: Envelope, count: int, *, is_ordered: bool = False) -> int:
    """The number of a message's lane: by its key. Those that have none are spread by their ids, or,
    with an order, share a lane."""
    return part_of(envelope.key or "" if is_ordered else envelope.key, envelope.id, count)


class _Lane:
    """Deliveries that were dealt to one lane and are not received by it yet."""

    def __init__(self, consumer: Consumer, lanes: Sequence[_Lane], *, is_ordered: bool) -> None:
        self._consumer = consumer
        self._is_ordered = is_ordered
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
        if self._is_ordered:
            self._drop_behind(
                {
                    each.envelope.key
                    for each, outcome in settlements
                    if not isinstance(outcome, Done)
                }
            )
        try:
            await self._consumer.settle(settlements)
        except Unreachable as error:
            for lane in self._all:
                lane.end(error)
            raise

    def _drop_behind(self, failed: Collection[str | None]) -> None:
        """What waits here in the keys of failed messages was received together with them."""
        self._waiting = deque(each for each in self._waiting if each.envelope.key not in failed)

    def put(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._changed.set()

    def end(self, error: BaseException) -> None:
        self._lost = self._lost or error
        self._changed.set()


async def _deal(consumer: Consumer, lanes: Sequence[_Lane], most: int, *, is_ordered: bool) -> None:
    while True:
        for delivery in await consumer.receive(most):
            envelope, count = delivery.envelope, len(lanes)
            # With an order, messages without a key are of one key.
            number = (
                part_of(envelope.key or "", "", count) if is_ordered else lane_of(envelope, count)
            )
            lanes[number].put(delivery)


def _end(lanes: Sequence[_Lane], dealing: asyncio.Task[None]) -> None:
    """End every lane with the reason why no more deliveries will come."""
    error = None if dealing.cancelled() else dealing.exception()
    for lane in lanes:
        lane.end(error or Unreachable("The subscription is not consumed any more."))
