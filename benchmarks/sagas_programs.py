"""The programs that run workflows of three steps: our saga over four services, DBOS, and Edda.

DBOS and Edda are engines in one process with one database. Their steps are empty functions of that
process, so that an engine writes down each step and sends nothing to anybody. Our saga sends each
step to another service with a database of its own: seven messages, each of which is written to an
outbox, relayed to the broker, and handled in a transaction with its id in an inbox.

| program | set up with                                                                          |
|---------|--------------------------------------------------------------------------------------|
| ours    | a worker for each of the four services, in one process, all at their defaults        |
| DBOS    | an asynchronous workflow with asynchronous steps, started without a queue; 20        |
|         | connections, its default. Fewer or more, queues, threads instead of coroutines, and  |
|         | polling instead of LISTEN/NOTIFY were tried: none was faster                         |
| Edda    | 20 connections and 40 on demand, which it advises for production, and LISTEN/NOTIFY  |
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass

import asyncpg  # type: ignore[import-untyped]
from dbos import DBOS
from redis.asyncio import Redis
from sqlalchemy import event as events
from sqlalchemy import make_url

from benchmarks.measure import Broken
from benchmarks.sagas_edda import edda_engine
from benchmarks.sagas_trips import STEPS, BookTrip, Endings, make_participants, make_trips
from eventmesh.clock import SystemClock
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.unit_of_work import TransactionSession
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, fresh_database
from eventmesh.transports.factory import open_transport

Run = Callable[[], Awaitable[None]]
"""Runs one workflow; returns once its end is committed."""


@dataclass(frozen=True)
class Servers:
    """Where the programs have their databases, and their broker."""

    postgres: Server
    redis_url: str


MakeEngine = Callable[[Servers], AbstractAsyncContextManager[Run]]
"""An engine with new databases. On leaving, Broken unless all of its workflows have ended."""


@asynccontextmanager
async def our_sagas(servers: Servers) -> AsyncIterator[Run]:
    """Each run publishes the command that starts a saga, in a transaction of its own."""
    endings, begun = Endings(), 0
    trips, participants = make_trips(endings.note), make_participants()

    async def run() -> None:
        nonlocal begun
        begun += 1
        trip = f"trip-{begun}"
        ended = endings.wait_for(trip)
        async with trips.transaction() as tx:
            tx.send(BookTrip(trip=trip))
        await ended

    async with fresh_services([trips, *participants], servers) as settings:
        with commits_told_to(endings.committed):
            async with workers([trips, *participants], settings):
                yield run
        url = settings.database_url("trips")
        await check_count(url, "eventmesh_saga WHERE status = 'completed'", begun)
        for service in participants:
            await check_count(settings.database_url(service.name), "eventmesh_inbox", begun)


@asynccontextmanager
async def dbos_workflows(servers: Servers) -> AsyncIterator[Run]:
    """Each run starts a workflow and waits for its result."""
    async with fresh_database(servers.postgres) as url:
        DBOS(
            config={
                "name": "benchmark",
                # psycopg gives bytes where a server's own encoding is SQL_ASCII.
                "system_database_url": driven_by("psycopg", url, client_encoding="utf8"),
                "log_level": "ERROR",
            }
        )

        @DBOS.step()
        async def book_room(trip: str) -> None:
            """Does nothing, as the other steps."""

        @DBOS.step()
        async def book_seat(trip: str) -> None: ...

        @DBOS.step()
        async def charge_card(trip: str) -> None: ...

        @DBOS.workflow()
        async def book(trip: str) -> None:
            await book_room(trip)
            await book_seat(trip)
            await charge_card(trip)

        begun = 0

        async def run() -> None:
            nonlocal begun
            begun += 1
            handle = await DBOS.start_workflow_async(book, f"trip-{begun}")
            await handle.get_result()

        DBOS.launch()
        try:
            yield run
        finally:
            await asyncio.to_thread(DBOS.destroy, destroy_registry=True)
        await check_count(url, "dbos.workflow_status WHERE status = 'SUCCESS'", begun)
        await check_count(url, "dbos.operation_outputs", STEPS * begun)


@asynccontextmanager
async def edda_workflows(servers: Servers) -> AsyncIterator[Run]:
    """Each run starts a workflow, which runs to its end in the caller's task."""
    begun = 0
    async with fresh_database(servers.postgres) as url:
        async with edda_engine(driven_by("asyncpg", url)) as book:

            async def run() -> None:
                nonlocal begun
                begun += 1
                await book(f"trip-{begun}")

            yield run
        await check_count(url, "workflow_instances WHERE status = 'completed'", begun)
        await check_count(url, "workflow_history", STEPS * begun)


@asynccontextmanager
async def fresh_services(services: Sequence[Service], servers: Servers) -> AsyncIterator[Settings]:
    """Default settings with a new database for each service, its tables made, and with a prefix of
    their own on Redis."""
    prefix = f"bench{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        urls = {}
        for service in services:
            url = await stack.enter_async_context(fresh_database(servers.postgres))
            database = Database(url, service=service.name)
            await migration.upgrade(database, service.metadata)
            await database.close()
            urls[service.name] = url
        stack.push_async_callback(_delete_keys, servers.redis_url, prefix)
        yield Settings(broker_url=servers.redis_url, broker_prefix=prefix, database_urls=urls)


@asynccontextmanager
async def workers(services: Sequence[Service], settings: Settings) -> AsyncIterator[None]:
    """A worker for each of the services while the context is open; drained on leaving."""
    clock, stop = SystemClock(), asyncio.Event()
    async with AsyncExitStack() as stack:
        running = []
        for service in services:
            service.configure(settings)
            transport = await stack.enter_async_context(
                open_transport(settings.broker_url, clock, settings.transport_options)
            )
            running.append(Worker([service], transport, settings, clock))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(stop.set)
        for worker in running:
            tasks.create_task(worker.run(stop))
            await worker.ready.wait()
        yield


@contextmanager
def commits_told_to(listener: Callable[[object], None]) -> Iterator[None]:
    """Call this after each commit of our transactions, in the task that commits."""
    kind = TransactionSession.sync_session_class
    events.listen(kind, "after_commit", listener)
    try:
        yield
    finally:
        events.remove(kind, "after_commit", listener)


def driven_by(driver: str, url: str, **options: str) -> str:
    """The URL of a PostgreSQL database with another driver, or "" for one that names none, and with
    these options of the driver."""
    drivername = f"postgresql+{driver}" if driver else "postgresql"
    parsed = make_url(url).set(drivername=drivername).update_query_dict(options)
    return parsed.render_as_string(hide_password=False)


async def check_count(url: str, rows: str, expected: int) -> None:
    """Broken unless there are so many of these rows: a table, or a table with a condition."""
    connection = await asyncpg.connect(driven_by("", url))
    try:
        found = await connection.fetchval(f"SELECT count(*) FROM {rows}")  # noqa: S608  # ours
    finally:
        await connection.close()
    if found != expected:
        raise Broken(f"{found:,} of {rows}, and {expected:,} were expected")


async def _delete_keys(url: str, prefix: str) -> None:
    async with Redis.from_url(url) as client:
        if keys := [key async for key in client.scan_iter(f"{prefix}:*", count=1000)]:
            await client.delete(*keys)
