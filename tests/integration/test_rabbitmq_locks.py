"""The lock that tasks and processes share over RabbitMQ."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest

from eventmesh.clock import SystemClock
from eventmesh.testing.servers import Server
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.queue_lock import QueueLock, QueueLocked
from tests.integration.cancellation import growing_numbers, run_turns

PATIENCE = 60.0

MIN_INTERRUPTIONS = 12
"""How many turns of the event loop must at least interrupt the lock's taking."""


class Processes:
    """Two connections, as two processes have them, and the lock that they share."""

    def __init__(self, url: str) -> None:
        self.connections = [BrokerConnection(url, "locks", TransportOptions()) for _ in range(2)]
        self.name = f"lock-{uuid.uuid4().hex}"

    def lock(self, process: int) -> QueueLock:
        """The lock, as one task of this process uses it."""
        return QueueLock(self.connections[process], self.name, SystemClock(), "testing")

    async def take(self, process: int, patience: float = PATIENCE) -> None:
        async with self.lock(process).held(patience):
            pass


@pytest.fixture
async def processes(rabbitmq_server: Server) -> AsyncIterator[Processes]:
    made = Processes(rabbitmq_server.url)
    for each in made.connections:
        await each.open()
    yield made
    for each in made.connections:
        await each.close()


async def test_tasks_of_one_process_exclude_each_other_like_processes(processes: Processes) -> None:
    async with processes.lock(0).held():
        for other in (0, 1):
            with pytest.raises(QueueLocked, match="Another process is testing"):
                await processes.take(other, patience=0.0)
        with pytest.raises(QueueLocked):  # the first of them has not taken it from its owner
            await processes.take(1, patience=0.0)
    await asyncio.gather(*(processes.take(process) for process in (0, 1, 0, 0, 1)))


async def test_whoever_is_cancelled_while_taking_the_lock_does_not_keep_it(
    processes: Processes,
) -> None:
    for turns in growing_numbers(every_position=False):
        taking = asyncio.ensure_future(processes.take(0))
        await run_turns(turns)
        was_done = taking.done()
        taking.cancel()
        await asyncio.wait([taking])
        assert was_done or taking.cancelled(), f"after {turns} turns: {taking}"
        await processes.take(0)  # once what was cancelled has ended
        await processes.take(1)
        if was_done:
            break
    assert turns > MIN_INTERRUPTIONS


async def test_an_error_while_the_lock_is_held_gives_it_back(processes: Processes) -> None:
    with pytest.raises(ZeroDivisionError):
        async with processes.lock(0).held():
            raise ZeroDivisionError
    await processes.take(1, patience=0.0)
