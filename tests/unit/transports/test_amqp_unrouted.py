"""What purging does where RabbitMQ does not hand out what it says is waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eventmesh.transports.rabbitmq.connection import Link
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.rabbitmq.unrouted import PURGED_AT_ONCE, UnroutedQueues


class Queues(UnroutedQueues):
    """Of a broker that says it has so many messages, and hands out those of these batches."""

    def __init__(self, ready: int, *batches: int) -> None:
        super().__init__(cast(Link, None), Topology("shop"), cast(Any, None))
        self._ready = ready
        self._batches = list(batches)
        self._looking = cast(Any, SimpleNamespace(alone=self._alone, ask_once=self._ask_once))

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        yield

    async def _ask_once(self, names: Iterable[str]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {name: SimpleNamespace(ready=self._ready) for name in names}

    async def _purge_first(self, _: str, number: int) -> int:
        purged = min(number, self._batches.pop(0) if self._batches else 0)
        self._ready -= purged
        return purged


@pytest.mark.parametrize(
    ("queues", "purged"),
    [
        (Queues(50), 0),
        (Queues(50, 20), 20),
        (Queues(50, 20, 20, 20), 40),
        (Queues(10, 20), 0),
        (Queues(10 + PURGED_AT_ONCE, 2 * PURGED_AT_ONCE), PURGED_AT_ONCE),
    ],
)
async def test_purging_ends_when_nothing_more_is_handed_out(queues: Queues, purged: int) -> None:
    async with asyncio.timeout(10):
        assert await queues.purge("payments.paid", 10, None) == purged
