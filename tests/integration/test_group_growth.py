"""How many messages share a transaction: what their handlers allow, whatever a commit costs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from eventmesh import Command, Service, Settings, Transaction
from eventmesh.clock import SystemClock
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import Delivery
from eventmesh.wire.envelope import seal

MOST = 100
TIME = 0.05


class Do(Command, name="shop.do", version=1):
    """Something that the clock alone measures."""


class MovedClock(SystemClock):
    """Stands still but when it is moved."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class Lane:
    """One lane of a service, always with more to do."""

    def __init__(self, service: Service, clock: MovedClock) -> None:
        self.clock = clock
        [handler] = service.handlers.values()
        vitals = SubscriptionVitals("shop", handler.subscription, clock)
        self.runner = BatchRunner(service, handler, vitals)

    async def run(self, batches: int) -> int:
        """The size of the groups after so many."""
        for _ in range(batches):
            envelopes = [
                seal(Do(), source="test", clock=self.clock) for _ in range(self.runner.size)
            ]
            deliveries = [Delivery(envelope, deliveries=1) for envelope in envelopes]
            assert len(await self.runner.run(deliveries)) == len(deliveries)
        return self.runner.size


Costs = Callable[[float, float], Lane]


@pytest.fixture
async def costs(tmp_path: Path) -> AsyncIterator[Costs]:
    """Makes a lane whose handler and commit take so many seconds each."""
    clock = MovedClock()
    service = Service("shop", clock=clock)
    service.configure(
        Settings(
            database_urls={"shop": f"sqlite:///{tmp_path}/shop.db"},
            group_size=MOST,
            group_time=TIME,
        )
    )
    handler_takes, commit_takes = 0.0, 0.0

    @service.subscriber(Do)
    async def do(command: Do, tx: Transaction) -> None:
        clock.seconds += handler_takes

    def commits(_connection: object) -> None:
        clock.seconds += commit_takes

    async with service:
        engine = (await service.database()).engine.sync_engine

        def make(handler: float, commit: float) -> Lane:
            nonlocal handler_takes, commit_takes
            handler_takes, commit_takes = handler, commit
            event.listen(engine, "commit", commits)
            return Lane(service, clock)

        yield make


async def test_where_commits_are_slow_groups_are_as_large_as_allowed(costs: Costs) -> None:
    assert await costs(0.0, 10 * TIME).run(batches=8) == MOST


async def test_where_handlers_are_slow_groups_end_in_time(costs: Costs) -> None:
    assert await costs(TIME / 8, 10 * TIME).run(batches=12) == 8


async def test_a_handler_that_takes_longer_than_group_time_gets_groups_of_one(costs: Costs) -> None:
    assert await costs(2 * TIME, 0.0).run(batches=4) == 1
