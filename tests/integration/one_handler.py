"""A service with one handler, whose effect is a row, on the memory transport. The testing kit's
mesh is not used: most of these tests need a server's own time-outs, and cut its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Integer, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Command
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.retry import Retry, constant
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.base import Subscription, publish_or_raise
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import seal

TIMEOUT_SECONDS = 120.0
SOON = Retry(attempts=3, backoff=constant("10ms"))
SUB = Subscription("shop.do", ("shop.do",))


class Base(DeclarativeBase): ...


class Effect(Base):
    __tablename__ = "effects"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)


class Do(Command, name="shop.do", version=1):
    number: int


@asynccontextmanager
async def worker(service: Service, url: str) -> AsyncIterator[MemoryTransport]:
    """Run a worker of the service while the context is open, with its subscription declared."""
    settings = Settings(database_urls={"shop": url})
    transport = MemoryTransport(SystemClock())
    stop = asyncio.Event()
    running = Worker([service], transport, settings, SystemClock())
    await transport.declare([SUB])
    task = asyncio.ensure_future(running.run(stop))
    ready = asyncio.ensure_future(running.ready.wait())
    await asyncio.wait([ready, task], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield transport
    finally:
        stop.set()
        await asyncio.wait_for(task, TIMEOUT_SECONDS)


async def send(transport: MemoryTransport, *numbers: int) -> None:
    await publish_or_raise(
        transport, [seal(Do(number=number), source="t", clock=SystemClock()) for number in numbers]
    )


async def until_settled(transport: MemoryTransport) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            stats = await transport.stats(SUB)
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
