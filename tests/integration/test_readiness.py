"""A worker is ready only while it can consume and relay."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from eventmesh import Event, Service, Settings, Transaction
from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.observability.metrics import WorkerMetrics
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.tables import outbox
from eventmesh.runtime import readiness
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.readiness import outbox_age, problems, warnings
from eventmesh.transports.base import Consumer, PublishResult, Subscription
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope, seal
from tests.support import units


@pytest.fixture(autouse=True)
def _a_slow_database_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "ANSWER_TIMEOUT", 60.0)


class Heard(Event, name="shop.heard", version=1):
    number: int


class Flaky(MemoryTransport):
    """A broker that can be made unreachable."""

    away = False
    tries_in_vain = 0

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        if self.away:
            self.tries_in_vain += 1
            raise Unreachable("the broker is away")
        async with super().consume(subscription, prefetch=prefetch) as consumer:
            receive = consumer.receive

            async def receive_or_lose(limit: int) -> Any:
                receiving = asyncio.ensure_future(receive(limit))
                while not self.away and not receiving.done():
                    await asyncio.wait([receiving], timeout=0.005)
                if not receiving.done():
                    receiving.cancel()
                    raise Unreachable("the broker is away")
                return receiving.result()

            consumer.receive = receive_or_lose  # type: ignore[method-assign]
            yield consumer

    async def publish(self, envelopes: Any) -> PublishResult:
        if self.away:
            return PublishResult.interrupted(envelopes, Unreachable("the broker is away"))
        return await super().publish(envelopes)


@pytest.fixture
async def worker(database_url: str, tmp_path: Path) -> AsyncIterator[Worker]:
    """A running worker, on a broker that can be made unreachable."""
    database = Database(database_url, service="shop")
    await migration.upgrade(database, None)
    await database.close()
    service, clock = Service("shop"), SystemClock()

    @service.subscriber(Heard)
    async def hear(event: Heard, tx: Transaction) -> None:
        if event.number < 0:
            await asyncio.Event().wait()

    settings = Settings(
        database_urls={"shop": database_url}, schemas=tmp_path, lease_time=1.0, drain_timeout=1.0
    )
    worker, stop = Worker([service], Flaky(clock), settings, clock), asyncio.Event()
    assert await problems(worker, outbox_max_age=60) == ["the worker is starting"]
    running = asyncio.ensure_future(worker.run(stop))
    try:
        await asyncio.wait_for(worker.ready.wait(), 60)
        yield worker
    finally:
        stop.set()
        await asyncio.wait([running], timeout=60)
        assert running.done()
        if not running.cancelled() and (error := running.exception()) is not None:
            raise error
        assert worker.vitals.stage in ("stopped", "draining")


def envelope(number: int) -> Envelope:
    return seal(Heard(number=number), source="shop", clock=SystemClock())


async def found(worker: Worker) -> list[str]:
    return await problems(worker, outbox_max_age=60)


async def metric(worker: Worker, name: str) -> float:
    families = text_string_to_metric_families((await WorkerMetrics(worker).text()).decode())
    [sample] = next(each for each in families if each.name == name).samples
    assert sample.labels == {"service": "shop"}
    return sample.value


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110  # the condition queries a server
            await asyncio.sleep(0.01)


async def test_a_worker_is_ready_while_all_its_servers_answer(worker: Worker) -> None:
    async def well() -> bool:
        return await found(worker) == []

    await until(well)
    assert worker.vitals.subscriptions[0].interruptions == 0


async def test_a_worker_is_not_ready_while_the_broker_is_unreachable(worker: Worker) -> None:
    assert isinstance(worker.transport, Flaky)
    worker.transport.away = True

    async def told() -> bool:
        return await found(worker) == ["subscription shop.hear is stalled: the broker is away"]

    async def well() -> bool:
        return await found(worker) == []

    await until(told)
    assert await metric(worker, "eventmesh_ready") == 0
    worker.transport.away = False
    await until(well)
    assert await metric(worker, "eventmesh_ready") == 1


async def test_a_lost_broker_is_one_interruption_however_often_it_is_tried_again(
    worker: Worker,
) -> None:
    transport, [vitals] = worker.transport, worker.vitals.subscriptions
    assert isinstance(transport, Flaky)

    async def is_consuming() -> bool:
        return vitals.why_not_consuming == ""

    for losses in (1, 2):
        await until(is_consuming)
        tries = transport.tries_in_vain + 3

        async def is_tried_again(tries: int = tries) -> bool:
            return transport.tries_in_vain >= tries

        transport.away = True
        await until(is_tried_again)
        assert vitals.interruptions == losses
        transport.away = False


async def test_a_worker_is_not_ready_while_a_message_waits_too_long_in_the_outbox(
    worker: Worker,
) -> None:
    assert isinstance(worker.transport, Flaky)
    worker.transport.away = True  # nothing is relayed
    [service] = worker.services
    database, now = await service.database(), service.clock.now()
    earlier = now - timedelta(minutes=2)
    old = Envelope({**envelope(1).attributes, "time": earlier.isoformat()}, b"{}")

    async def store(message: Envelope, delay: float, at: datetime) -> None:
        async with database.connection() as connection:
            await units.store(connection, [Outgoing(message, delay)], now=at)

    assert await outbox_age(service) == 0
    await store(old, 30.0, now)  # a delayed message is not late
    assert await outbox_age(service) == 0
    await store(envelope(2), 1.0, earlier)
    assert 118 <= await outbox_age(service) <= seconds_since(earlier)
    await store(old, 0.0, now)

    async def told() -> bool:
        waited = [
            float(age)
            for each in await found(worker)
            for age in re.findall(r"has waited in the outbox of service shop for (\d+) s", each)
        ]
        return any(119 <= each <= seconds_since(earlier) for each in waited)

    await until(told)
    worker.transport.away = False

    async def well() -> bool:
        return await found(worker) == []

    await until(well)


async def test_parked_messages_are_a_warning_and_a_metric(worker: Worker) -> None:
    assert isinstance(worker.transport, Flaky)
    [service] = worker.services
    database, now = await service.database(), service.clock.now()
    assert (await warnings(worker), await metric(worker, "eventmesh_outbox_parked")) == ([], 0)
    worker.transport.away = True  # nothing is relayed
    async with database.connection() as connection:
        await units.store(connection, [Outgoing(envelope(1)), Outgoing(envelope(2))], now=now)
        await connection.execute(update(outbox).values(parked=True, attempts=10, last_error="no"))
    assert await metric(worker, "eventmesh_outbox_parked") == 2
    assert await warnings(worker) == [
        "service shop has 2 parked message(s) in its outbox, which block later ones of their keys: "
        "see `eventmesh outbox list shop --parked`"
    ]


def seconds_since(moment: datetime) -> float:
    """So many at the most, with one for clocks that differ."""
    return (SystemClock().now() - moment).total_seconds() + 1


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_worker_is_not_ready_while_its_database_is_unreachable(
    worker: Worker, database_url: str
) -> None:
    parts = urlsplit(database_url.replace("+asyncpg", ""))
    admin = await asyncpg.connect(parts._replace(path="/postgres").geturl())
    name = parts.path.removeprefix("/")

    async def told() -> bool:
        return any("does not answer" in problem for problem in await found(worker))

    async def well() -> bool:
        return await found(worker) == []

    await until(well)
    try:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        await until(told)
        assert await metric(worker, "eventmesh_ready") == 0
    finally:
        await admin.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await admin.close()
    await until(well)


async def test_a_worker_is_not_ready_while_its_clock_differs_from_that_of_its_database(
    worker: Worker,
) -> None:
    [service] = worker.services
    right = service.clock
    service.clock = Ahead()

    async def told() -> bool:
        return any(
            "the clock of this machine is 7,200 s ahead of that of the database of service shop"
            in each
            for each in await found(worker)
        )

    await until(told)
    service.clock = right

    async def well() -> bool:
        return await found(worker) == []

    await until(well)


class Ahead(SystemClock):
    """A clock that is ahead by two hours."""

    def now(self) -> datetime:
        return super().now() + timedelta(hours=2)
