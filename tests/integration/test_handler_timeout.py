"""A handler that takes too long is cancelled, undone, and tried again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Integer, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Command
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.retry import Retry, constant
from eventmesh.runtime.service import Service
from eventmesh.runtime.settings import Settings
from eventmesh.runtime.worker import Worker
from eventmesh.testing.proxy import proxy_before
from eventmesh.transports.base import Subscription
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import seal

PATIENCE = 30.0
SOON = Retry(attempts=3, backoff=constant("10ms"))


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)


class Do(Command, name="shop.do", version=1):
    number: int


@asynccontextmanager
async def worker(service: Service, url: str) -> AsyncIterator[MemoryTransport]:
    """A worker of the service, its subscription declared."""
    settings = Settings(database_urls={"shop": url})
    transport = MemoryTransport(SystemClock())
    stop = asyncio.Event()
    running = Worker([service], transport, settings, SystemClock())
    task = asyncio.ensure_future(running.run(stop))
    await running.ready.wait()
    try:
        yield transport
    finally:
        stop.set()
        await asyncio.wait_for(task, PATIENCE)


async def send(transport: MemoryTransport, *numbers: int) -> None:
    await transport.publish(
        [seal(Do(number=number), source="t", clock=SystemClock()) for number in numbers]
    )


async def until_settled(transport: MemoryTransport) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            stats = await transport.stats(Subscription("shop.do", ("shop.do",)))
            if not stats.ready and not stats.delayed and not stats.in_flight:
                return
            await asyncio.sleep(0.01)


async def effects(url: str) -> list[int]:
    database = Database(url, service="shop")
    async with database.reading() as connection:
        numbers = list(await connection.scalars(select(Effect.number).order_by(Effect.number)))
    await database.close()
    return numbers


async def migrated(url: str) -> None:
    database = Database(url, service="shop")
    await migration.upgrade(database, Base.metadata)
    await database.close()


async def test_a_statement_that_takes_too_long_is_ended_and_only_its_message_is_tried_again(
    postgres_url: str,
) -> None:
    await migrated(postgres_url)
    service = Service("shop", metadata=Base.metadata)
    attempts: list[int] = []
    backends: set[int] = set()

    @service.subscriber(retry=SOON, timeout="300ms")
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        await tx.session.flush()
        backends.add(await tx.session.scalar(text("SELECT pg_backend_pid()")) or 0)
        if command.number == 2:
            attempts.append(command.number)
            await tx.session.execute(text("SELECT pg_sleep(600)"))

    async with worker(service, postgres_url) as transport:
        await send(transport, 1, 2, 3)
        await until_settled(transport)
        [letter] = await transport.dead_letters(Subscription("shop.do", ()), limit=9)
        async with (await service.database()).reading() as connection:
            sleeping = await connection.scalar(
                text(
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%'"
                    " AND pid <> pg_backend_pid() AND state = 'active'"
                )
            )
    assert letter.reason == "failed 3 times: TimeoutError: the handler took longer than its 0.3 s"
    assert await effects(postgres_url) == [1, 3]
    assert len(attempts) >= 3
    assert len(backends) >= 3  # a connection on which a statement was cancelled is not used again
    assert sleeping == 0


async def test_a_database_that_never_answers_holds_a_lane_no_longer_than_the_limit(
    postgres_url: str,
) -> None:
    await migrated(postgres_url)
    service = Service("shop", metadata=Base.metadata)
    begun = asyncio.Event()

    async with proxy_before(postgres_url) as proxy:

        @service.subscriber(retry=SOON, timeout="300ms")
        async def do(command: Do, tx: Transaction) -> None:
            if not begun.is_set():
                begun.set()
                with proxy.silent():
                    await tx.session.execute(text("SELECT 1"))
            tx.session.add(Effect(number=command.number))

        async with worker(service, proxy.url) as transport:
            await send(transport, 1)
            await begun.wait()
            await until_settled(transport)
    assert await effects(postgres_url) == [1]


async def test_a_handler_that_takes_no_transaction_is_limited_too(sqlite_url: str) -> None:
    service = Service("shop")
    attempts: list[int] = []

    @service.subscriber(retry=SOON, timeout="50ms")
    async def do(command: Do) -> None:
        attempts.append(command.number)
        if len(attempts) < 3:
            await asyncio.Event().wait()

    async with worker(service, sqlite_url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        assert await transport.dead_letters(Subscription("shop.do", ()), limit=9) == []
    assert attempts == [1, 1, 1]


async def test_a_timeout_of_the_handlers_own_is_not_taken_for_the_limit(sqlite_url: str) -> None:
    service = Service("shop")

    @service.subscriber(retry=Retry(attempts=1), timeout="20s")
    async def do(command: Do) -> None:
        raise TimeoutError("somebody did not answer")

    async with worker(service, sqlite_url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        [letter] = await transport.dead_letters(Subscription("shop.do", ()), limit=9)
    assert letter.reason == "failed 1 time: TimeoutError: somebody did not answer"
