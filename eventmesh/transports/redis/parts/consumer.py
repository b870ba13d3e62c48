"""Consumes a subscription whose messages are in several parts.

Each part has a consumer that reads it, on a connection of its own. `receive` waits for all of them
by one event, and takes what they have, starting with a different part each time. So there is no
task between the parts and the worker, and cancelling `receive` interrupts nothing.

If one part cannot be reached, the consumer ends, as it does where there is only one.
"""

from __future__ import annotations

from collections.abc import Sequence

from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Outcome
from eventmesh.transports.redis.parts.concurrently import concurrently
from eventmesh.transports.redis.parts.part import PartConsumer
from eventmesh.transports.redis.prefetch import Prefetch


class SpreadConsumer:
    """See the module; the consumers share this prefetch."""

    def __init__(self, consumers: Sequence[PartConsumer], prefetch: Prefetch) -> None:
        self._consumers = list(consumers)
        self._prefetch = prefetch

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            for consumer in self._consumers:  # all of them, before anything is taken
                consumer.check()
            if taken := self._take(limit):
                return taken
            await self._prefetch.wait()

    def _take(self, limit: int) -> list[Delivery]:
        self._consumers.append(self._consumers.pop(0))
        taken: list[Delivery] = []
        for consumer in self._consumers:
            if len(taken) == limit:
                break
            taken += consumer.take(limit - len(taken))
        return taken

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        shares = [(consumer, consumer.own(settlements)) for consumer in self._consumers]
        await concurrently([consumer.settle(own) for consumer, own in shares if own])
