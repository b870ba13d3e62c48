"""Purging when RabbitMQ delivers fewer messages than it reports as ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.transports.rabbitmq.unrouted import PURGE_BATCH, UnroutedQueues


class Queues(UnroutedQueues):
    """The queues of a broker that reports `ready` messages and delivers only these batches."""

    def __init__(self, ready: int, *batches: int) -> None:
        super().__init__(cast(BrokerConnection, None), Topology("shop"), cast(Any, None))
        self._ready = ready
        self._batches = list(batches)
        self._inspector = cast(Any, SimpleNamespace(exclusively=self._exclusively))

    @asynccontextmanager
    async def _exclusively(self) -> AsyncIterator[None]:
        yield

    async def _count(self, names: Collection[str]) -> dict[str, Any]:
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
        (Queues(10 + PURGE_BATCH, 2 * PURGE_BATCH), PURGE_BATCH),
    ],
)
async def test_purging_ends_when_no_more_messages_are_delivered(
    queues: Queues, purged: int
) -> None:
    async with asyncio.timeout(60):
        assert await queues.purge("payments.paid", 10, None) == purged
