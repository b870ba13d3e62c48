"""The programs that are compared: a message's effects in a database, exactly once.

By hand is what a team writes on FastStream and SQLAlchemy: one transaction a message, in it the
message's id, the order, and a row of an outbox. Ours is a worker at its default settings; no relay
runs beside any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import FromClause, func, insert, select
from sqlalchemy import event as events
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.effects_tables import (
    Base,
    HandBase,
    Order,
    OrderRecorded,
    OutboxMessage,
    Processed,
    order_values,
)
from benchmarks.measure import Broken, Contender, Mark, Rate
from benchmarks.messages import OrderPlaced
from benchmarks.ours import Ours, collecting_as_a_worker
from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.persistence import leases, migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import inbox, outbox
from eventmesh.persistence.transaction import Transaction
from eventmesh.persistence.unit_of_work import TransactionSession
from eventmesh.runtime.consuming.worker import Worker

FOREVER = 3600.0
"""Seconds for which nobody relays: longer than any run."""


class Progress:
    """How many messages are committed, and when the warm-up and all of them were."""

    def __init__(self, warm_up: int, total: int) -> None:
        self.done = asyncio.Event()
        self.total = total
        self.handled = 0
        self.count = 0
        self._warm_up = warm_up
        self._began: tuple[int, Mark] | None = None
        self._ended: Mark | None = None

    def committed(self, number: int) -> None:
        self.count += number
        if self._began is None and self.count >= self._warm_up:
            self._began = self.count, Mark()
        if self.count >= self.total and self._ended is None:
            self._ended = Mark()
            self.done.set()

    def rate(self) -> Rate:
        """Messages a second, from the end of the warm-up to the last of all."""
        if self._began is None or self._ended is None:
            raise Broken(f"committed {self.count:,} of {self.total:,} messages")
        before, began = self._began
        return began.rate(self.total - before, until=self._ended)


Program = Callable[[Contender, str, Progress], Awaitable[None]]
"""Works off what waits at the contender's place, into the database of this URL."""


async def by_hand(contender: Contender, url: str, progress: Progress) -> None:
    """FastStream and SQLAlchemy, one transaction a message."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def record(event: OrderPlaced) -> None:
        async with sessions() as session, session.begin():
            enter = upsert(Processed).values(message_id=str(event.order_id))
            entered = await session.execute(
                enter.on_conflict_do_nothing().returning(Processed.message_id)
            )
            if entered.first() is None:
                return
            session.add(Order(**order_values(event)))
            recorded = OrderRecorded(order_id=event.order_id, total=event.total)
            session.add(
                OutboxMessage(
                    name="bench.order_recorded",
                    key=str(event.order_id),
                    payload=recorded.model_dump_json().encode(),
                )
            )
        progress.committed(1)

    try:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.run_sync(HandBase.metadata.create_all)
        await contender.consume(record, progress.done)
        await _check(
            engine, progress, Order.__table__, Processed.__table__, OutboxMessage.__table__
        )
    finally:
        await engine.dispose()


async def record_by_orm(event: OrderPlaced, tx: Transaction) -> OrderRecorded:
    """The same effects."""
    tx.session.add(Order(**order_values(event)))
    return OrderRecorded(order_id=event.order_id, total=event.total)


async def record_by_core(event: OrderPlaced, tx: Transaction) -> OrderRecorded:
    """The same effects, by a statement instead of an object."""
    await tx.session.execute(insert(Order.__table__), order_values(event))
    return OrderRecorded(order_id=event.order_id, total=event.total)


async def only_publish(event: OrderPlaced, tx: Transaction) -> OrderRecorded:
    """What remains when the handler itself costs nothing."""
    return OrderRecorded(order_id=event.order_id, total=event.total)


def on_eventmesh(
    handler: Callable[[OrderPlaced, Transaction], Awaitable[OrderRecorded]],
) -> Program:
    """A worker with this handler."""

    async def work(contender: Contender, url: str, progress: Progress) -> None:
        if not isinstance(contender, Ours):
            raise TypeError(contender)
        service = Service("bench", metadata=Base.metadata)
        settings = contender.settings.model_copy(update={"database_urls": {"bench": url}})
        service.configure(settings)

        async def handle(event: OrderPlaced, tx: Transaction) -> OrderRecorded:
            progress.handled += 1
            return await handler(event, tx)

        service.subscriber(name="handle")(handle)
        database = await migrated(url)
        try:
            async with database.connection() as connection:
                # So that no relay works beside it.
                await connection.run_sync(leases.renew, "nobody", FOREVER)
            with _commits(progress), collecting_as_a_worker():
                worker = Worker([service], contender.transport, settings, SystemClock())
                await worker.run(progress.done)
            rows = [inbox, outbox] if handler is only_publish else [inbox, outbox, Order.__table__]
            await _check(database.engine, progress, *rows)
        finally:
            await database.close()

    return work


async def migrated(url: str) -> Database:
    """The database with all its tables; to be closed."""
    database = Database(url, service="bench")
    await migration.upgrade(database, Base.metadata)
    return database


@contextmanager
def _commits(progress: Progress) -> Iterator[None]:
    """Take what was handled as committed after each commit."""

    def committed(_session: Session) -> None:
        progress.committed(progress.handled - progress.count)

    kind = TransactionSession.sync_session_class
    events.listen(kind, "after_commit", committed)
    try:
        yield
    finally:
        events.remove(kind, "after_commit", committed)


async def _check(engine: AsyncEngine, progress: Progress, *tables: FromClause) -> None:
    async with engine.connect() as connection:
        for table in tables:
            rows = await connection.scalar(select(func.count()).select_from(table))
            if rows != progress.total:
                raise Broken(f"{table} has {rows:,} rows, and {progress.total:,} were expected")
