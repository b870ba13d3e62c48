"""How long it takes from publishing in a transaction until a handler's effects are committed, at a
steady pace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from time import perf_counter
from uuid import UUID, uuid4

from sqlalchemy import event as events
from sqlalchemy.orm import Session

from benchmarks.contenders_redis import RedisContenders
from benchmarks.effects_programs import migrated
from benchmarks.effects_tables import Base, Order, OrderRecorded
from benchmarks.measure import RUN_TIMEOUT, Broken, settle_memory
from benchmarks.ours import Ours
from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.persistence.transaction import Transaction
from eventmesh.persistence.unit_of_work import TransactionSession
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, fresh_database

EVERY = 0.01
"""Seconds between messages: 100 a second."""

MESSAGES = 1_000
WARM_UP = 100


class Timed:
    """Messages on their way, from before their transaction is opened until their handler's is
    committed."""

    def __init__(self) -> None:
        self.began: dict[UUID, float] = {}
        self.took: dict[UUID, float] = {}
        self.handled: list[UUID] = []
        self.all_done = asyncio.Event()

    def committed(self, _session: Session) -> None:
        at = perf_counter()
        self.took |= {each: (at - self.began[each]) * 1000 for each in self.handled}
        self.handled.clear()
        if len(self.took) == MESSAGES + WARM_UP:
            self.all_done.set()


async def latencies(url: str, postgres: Server, *, own_process: bool) -> list[float]:
    """Milliseconds a message. With `own_process`, the worker's relay is woken by the commit itself;
    otherwise by what the database tells it, as when a web application publishes."""
    timed = Timed()
    async with (
        asyncio.timeout(RUN_TIMEOUT),
        fresh_database(postgres) as database_url,
        RedisContenders(url).ours()() as contender,
    ):
        if not isinstance(contender, Ours):
            raise TypeError(contender)
        settings = contender.settings.model_copy(update={"database_urls": {"bench": database_url}})
        await (await migrated(database_url)).close()
        service = _service(settings, timed)
        worker = Worker([service], contender.transport, settings, SystemClock())
        stop = asyncio.Event()
        with _commits(timed):
            async with asyncio.TaskGroup() as tasks, _service(settings, timed) as other:
                tasks.create_task(worker.run(stop))
                await worker.ready.wait()
                settle_memory()  # as a worker's process does
                await _publish(service if own_process else other, timed)
                await timed.all_done.wait()
                stop.set()
    if len(timed.took) != MESSAGES + WARM_UP:
        raise Broken(f"{len(timed.took):,} messages were handled")
    return list(timed.took.values())[WARM_UP:]


def _service(settings: Settings, timed: Timed) -> Service:
    service = Service("bench", metadata=Base.metadata)
    service.configure(settings)
    service.publisher(OrderRecorded)

    async def handle(event: OrderRecorded, tx: Transaction) -> None:
        timed.handled.append(event.order_id)
        tx.session.add(
            Order(
                order_id=event.order_id,
                customer_id=event.order_id,
                email="customer@example.com",
                currency="EUR",
                total=event.total,
                placed_at=datetime.now(UTC),
            )
        )

    service.subscriber(name="record")(handle)
    return service


async def _publish(service: Service, timed: Timed) -> None:
    """At the pace, whatever a transaction takes."""

    async def publish() -> None:
        event = OrderRecorded(order_id=uuid4(), total=Decimal("149.97"))
        timed.began[event.order_id] = perf_counter()
        async with service.transaction() as tx:
            tx.publish(event)

    began = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(MESSAGES + WARM_UP):
            await asyncio.sleep(max(0.0, began + number * EVERY - perf_counter()))
            tasks.create_task(publish())


@contextmanager
def _commits(timed: Timed) -> Iterator[None]:
    kind = TransactionSession.sync_session_class
    events.listen(kind, "after_commit", timed.committed)
    try:
        yield
    finally:
        events.remove(kind, "after_commit", timed.committed)
