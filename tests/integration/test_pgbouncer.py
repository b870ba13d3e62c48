"""A service's database behind PgBouncer in transaction mode, where each transaction may get another
server connection, with and without PgBouncer's support for prepared statements."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, get_args
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import text

from eventmesh.persistence.database import Database, Scope
from eventmesh.testing.servers import WAYS, Server, fresh_database
from eventmesh.testing.servers.postgres_server import execute
from eventmesh.testing.servers.processes import free_port
from tests.conftest import Servers
from tests.integration.conftest import TIMEOUT_SECONDS, Project, until

POLLING = "LISTEN/NOTIFY unavailable; polling every 0.5 s"
WAITING = (
    "outbox relay waiting for broker",
    "outbox relay waiting for database",
    "subscription waiting for broker",
    "subscription waiting for database",
)
OUTBOX = "SELECT count(*) FROM eventmesh_outbox"
WORKERS = 3
PROGRAMS = 2
MESSAGES = 75  # for each program

SERVICE = """\
from eventmesh import Command, Event, Service, Transaction
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...
class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
class Told(Base):
    __tablename__ = "told"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]

class Enter(Command, name="bank.enter", version=1):
    number: int
class Entered(Event, name="bank.entered", version=1):
    number: int

service = Service("bank", metadata=Base.metadata)
entries = service.publisher(Enter)

@service.subscriber(Enter, concurrency=4)
async def enter(command: Enter, tx: Transaction) -> Entered:
    tx.session.add(Entry(number=command.number))
    return Entered(number=command.number)

@service.subscriber(Entered, concurrency=4)
async def tell(event: Entered, tx: Transaction) -> None:
    tx.session.add(Told(number=event.number))
"""

SEND = f"""\
import asyncio, sys
from services.bank.service import Enter, entries, service

async def main():
    first = {MESSAGES} * int(sys.argv[1])
    async with service, asyncio.TaskGroup() as tasks:
        for number in range(first, first + {MESSAGES}):
            tasks.create_task(entries.publish(Enter(number=number)))

asyncio.run(main())
"""


@pytest.fixture(scope="module", params=WAYS)
def pgbouncer(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """The PgBouncer in a container supports prepared statements; the private one does not."""
    return servers.had_by("pgbouncer", request.param)


@pytest.fixture
async def pooled_url(pgbouncer: Server) -> AsyncIterator[str]:
    async with fresh_database(pgbouncer) as url:
        yield url.replace("postgresql+asyncpg://", "postgresql://")


def ask(url: str, statement: str) -> Any:
    return asyncio.run(execute(url, statement))


def test_workers_behind_pgbouncer_lose_and_duplicate_no_message(
    project: Project, pooled_url: str
) -> None:
    name = urlsplit(pooled_url).path.strip("/")
    ask(pooled_url.removesuffix(name) + "postgres", f"DROP DATABASE {name}")
    project.service(SERVICE)
    project.environment["EVENTMESH_BANK_DATABASE_URL"] = pooled_url
    upgraded = project.run("db", "upgrade", "--create", "bank")
    upgraded.succeeds("upgraded to")
    assert upgraded.err == ""

    port = free_port()
    first = project.worker("--health-port", str(port))
    workers = [first, *(project.worker() for _ in range(WORKERS - 1))]
    project.write("send.py", SEND)
    programs = [project.start_file("send.py", str(number)) for number in range(PROGRAMS)]
    for program in programs:
        ended = program.ended()
        assert (ended.code, ended.err) == (0, "")

    told = "SELECT count(*) FROM told"
    until(lambda: ask(pooled_url, told) == PROGRAMS * MESSAGES, "all messages handled")
    readyz = f"http://127.0.0.1:{port}/readyz"
    until(lambda: httpx.get(readyz, timeout=TIMEOUT_SECONDS).status_code == 200, "a ready worker")
    until(lambda: ask(pooled_url, OUTBOX) == 0, "an empty outbox")
    for worker in workers:
        worker.until_says(POLLING)
        worker.drain()

    for table in ("entries", "told"):
        numbers = f"SELECT array_agg(number ORDER BY number) FROM {table}"  # noqa: S608
        assert ask(pooled_url, numbers) == [*range(PROGRAMS * MESSAGES)]
    assert ask(pooled_url, OUTBOX) == 0
    for worker in workers:
        events = [line["event"] for line in worker.lines() if line["level"] != "info"]
        assert events.count(POLLING) == 1, worker.err
        # On a busy machine a worker may have to wait for its database, which is not a failure.
        assert {*events} <= {POLLING, *WAITING}, worker.err


async def test_settings_for_work_queues_end_with_their_transaction(pooled_url: str) -> None:
    """The next transaction on that server connection may be of a handler, whose commit must wait
    for the disk."""
    database = Database(pooled_url, service="bank")
    try:
        for scope in get_args(Scope):
            async with database.queue(scope) as connection:
                assert await connection.scalar(text("SHOW synchronous_commit")) == "off"
                assert await connection.scalar(text("SHOW enable_seqscan")) == "off"
        async with AsyncExitStack() as stack:
            for _ in range(3):  # more than PgBouncer has opened so far
                connection = await stack.enter_async_context(database.connection())
                assert await connection.scalar(text("SHOW synchronous_commit")) == "on"
                assert await connection.scalar(text("SHOW enable_seqscan")) == "on"
    finally:
        await database.close()
