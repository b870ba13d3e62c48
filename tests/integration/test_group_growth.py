"""A group has as many messages as its handlers allow within its time, whatever a commit costs."""

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

MAX_GROUP_SIZE = 100
GROUP_TIME = 0.05


class Do(Command, name="shop.do", version=1):
    """A command whose cost only the clock shows."""


class MovedClock(SystemClock):
    """A clock that only moves when the test moves it."""

    seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


class Lane:
    """One lane of a service, which always has more messages."""

    def __init__(self, service: Service, clock: MovedClock) -> None:
        self.clock = clock
        [handler] = service.handlers.values()
        vitals = SubscriptionVitals("shop", handler.subscription, clock)
        self.runner = BatchRunner(service, handler, vitals)

    async def run(self, batches: int) -> int:
        """Run this number of groups; returns the group size afterwards."""
        for _ in range(batches):
            envelopes = [
                seal(Do(), source="test", clock=self.clock) for _ in range(self.runner.size)
            ]
            deliveries = [Delivery(envelope, deliveries=1) for envelope in envelopes]
            assert len(await self.runner.run(deliveries)) == len(deliveries)
        return self.runner.size


MakeLane = Callable[[float, float], Lane]


@pytest.fixture
async def lane_with_costs(tmp_path: Path) -> AsyncIterator[MakeLane]:
    """Creates a lane whose handler and whose commit take these numbers of seconds."""
    clock = MovedClock()
    service = Service("shop", clock=clock)
    service.configure(
        Settings(
            database_urls={"shop": f"sqlite:///{tmp_path}/shop.db"},
            group_size=MAX_GROUP_SIZE,
            group_time=GROUP_TIME,
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


async def test_groups_grow_to_the_limit_if_commits_are_slow(lane_with_costs: MakeLane) -> None:
    assert await lane_with_costs(0.0, 10 * GROUP_TIME).run(batches=8) == MAX_GROUP_SIZE


async def test_groups_are_limited_by_group_time_if_handlers_are_slow(
    lane_with_costs: MakeLane,
) -> None:
    assert await lane_with_costs(GROUP_TIME / 8, 10 * GROUP_TIME).run(batches=12) == 8


async def test_groups_have_one_message_if_a_handler_takes_longer_than_group_time(
    lane_with_costs: MakeLane,
) -> None:
    assert await lane_with_costs(2 * GROUP_TIME, 0.0).run(batches=4) == 1
