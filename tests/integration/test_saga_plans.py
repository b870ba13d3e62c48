"""What PostgreSQL reads for sagas: each statement follows an index and reads few rows, however many
sagas are open and however many have ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence import migration, outbox, purge, sagas, tables
from eventmesh.persistence.database import AsyncSession, Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.sagas import LogEntry, SagaRow
from eventmesh.testing.servers import Server, fresh_database
from eventmesh.wire.envelope import Envelope
from tests.support import units

SERVICE = "orders"
NAME = f"{SERVICE}.fulfil"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPEN, SAGAS = 1_000, 20_000
"""The sagas that are open, and all. Far fewer than a service may have, and enough for an index to
be worth it."""

TIMERS = 10_000
"""Delayed messages, of these sagas and of others."""


def number(index: int) -> str:
    return f"00000000-0000-0000-0000-{index:012}"


def saga_row(index: int) -> dict[str, Any]:
    """One of 50 open ones waits for a rare step, the others for a common one."""
    is_open = index < OPEN
    at = NOW + timedelta(milliseconds=index)
    return {
        "name": NAME,
        "id": number(index),
        "version": 1,
        "status": "running" if is_open else "completed",
        "state": {"order": index},
        "steps": {},
        "row_version": 1,
        "started_at": at,
        "updated_at": at,
        "ended_at": None if is_open else at,
        "details": {},
        "key": f"order-{index}",
        "is_open": True if is_open else None,
        "waiting_for": ("approve" if index % 50 == 0 else "reserve,capture") if is_open else "",
        "due_at": at if is_open else None,
    }


def even_without_statistics(tests: str) -> pytest.MarkDecorator:
    """A table that was filled a moment ago is read as one that PostgreSQL has statistics of."""
    return pytest.mark.parametrize(
        "filled_url", [(True, tests), (False, tests)], indirect=True, ids=["analyzed", "new"]
    )


READING, WRITING = "that read", "that write"
"""Tests that share a database. What is written stays in the indexes even if it is undone."""

EVEN_WITHOUT_STATISTICS = even_without_statistics(READING)


@pytest.fixture(scope="module")
def filled_urls(postgres_server: Server) -> Iterator[Callable[[bool, str], str]]:
    """Returns databases that are filled, with statistics or without, for tests of one kind. They
    are shared, because filling one takes a second, so no test changes anything for the next."""
    loop, stack, urls = asyncio.new_event_loop(), AsyncExitStack(), dict[tuple[bool, str], str]()

    def url(is_analyzed: bool, tests: str) -> str:
        key = is_analyzed, tests
        if key not in urls:
            fresh = stack.enter_async_context(fresh_database(postgres_server))
            urls[key] = loop.run_until_complete(fresh)
            loop.run_until_complete(fill(urls[key], is_analyzed=is_analyzed))
        return urls[key]

    yield url
    loop.run_until_complete(stack.aclose())
    loop.close()


@pytest.fixture
def filled_url(request: pytest.FixtureRequest, filled_urls: Callable[[bool, str], str]) -> str:
    return filled_urls(*getattr(request, "param", (True, READING)))


@pytest.fixture
async def database(filled_url: str) -> AsyncIterator[Database]:
    database = Database(filled_url, service="orders")
    await database.connect()
    yield database
    await database.close()


async def fill(url: str, *, is_analyzed: bool) -> None:
    """Store sagas, their logs, time-outs, and messages that are due at once; analyzed, as
    PostgreSQL does by itself within a minute or two, or not yet."""
    database = Database(url, service="orders")
    await migration.upgrade(database)
    if not is_analyzed:
        async with database.connection() as connection:
            for table in (tables.saga, tables.outbox):
                await connection.execute(
                    text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = false)")
                )
    async with AsyncSession(database.engine) as session:
        # Written here rather than by sagas.store, which would start and end all at one moment.
        await session.execute(insert(tables.saga), [saga_row(index) for index in range(SAGAS)])
        begun = [LogEntry(number(index), {"rule": "begun"}) for index in range(SAGAS)]
        await sagas.store(session, NAME, log=begun)
        connection = await session.connection()
        envelopes = [Envelope({"id": number(index), "name": "x"}, b"{}") for index in range(TIMERS)]
        waiting = [Outgoing(envelope, delay=60) for envelope in envelopes]
        await units.store(connection, waiting, now=NOW)
        at_once = [replace(each, delay=0.0) for each in waiting[:OPEN]]
        await units.store(connection, at_once)
        await session.commit()
    if is_analyzed:
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(text("ANALYZE"))
    await database.close()


@dataclass(frozen=True)
class Read:
    """What a statement has read from tables: rows by scan, with those that a filter threw away."""

    scans: dict[str, int]
    plan: str

    @property
    def rows(self) -> int:
        return sum(self.scans.values())

    @property
    def whole_tables(self) -> list[str]:
        return [scan for scan in self.scans if scan.startswith("Seq Scan")]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


async def reads(
    database: Database,
    run: Callable[[AsyncConnection], Awaitable[object]],
    *,
    queue: bool = False,
) -> list[Read]:
    """The plans of the statements that this runs, in their order, each as it was carried out; with
    `queue` by the settings of the relay's and the purger's connections."""
    seen: list[tuple[str, Any]] = []
    noting = False

    def note(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        if noting and "SAVEPOINT" not in statement:
            seen.append((statement, parameters))

    # Before there is a connection, which otherwise would not tell.
    event.listen(Engine, "before_cursor_execute", note)
    try:
        async with database.queue() if queue else database.connection() as connection:
            # Undone before they are explained, which carries them out again.
            trial = await connection.begin_nested()
            noting = True
            await run(connection)
            noting = False
            await trial.rollback()
            trial = await connection.begin_nested()
            found = [await explained(connection, *statement) for statement in seen]
            await trial.rollback()  # for the next test
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert found
    return found


async def explained(connection: AsyncConnection, statement: str, parameters: Any) -> Read:
    """What a statement reads as it is carried out."""
    answer = await connection.exec_driver_sql(
        f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
    )
    plan = answer.scalar_one()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    scans: dict[str, int] = {}
    for node in _nodes(plan[0]["Plan"]):
        if "Index Name" in node or "Seq Scan" in node["Node Type"]:
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            where = node.get("Index Name") or node.get("Relation Name", "")
            name = f"{node['Node Type']} {where}"
            scans[name] = scans.get(name, 0) + int(rows * node["Actual Loops"])
    return Read(scans, json.dumps(plan, indent=1))


async def one(
    database: Database,
    run: Callable[[AsyncConnection], Awaitable[object]],
    *,
    queue: bool = False,
) -> Read:
    [read] = [read for read in await reads(database, run, queue=queue) if read.scans]
    return read


def in_session(
    work: Callable[[AsyncSession], Awaitable[object]],
) -> Callable[[AsyncConnection], Awaitable[object]]:
    async def run(connection: AsyncConnection) -> None:
        async with AsyncSession(
            bind=connection, join_transaction_mode="create_savepoint"
        ) as session:
            await work(session)

    return run


@EVEN_WITHOUT_STATISTICS
async def test_a_group_locks_its_sagas_by_their_ids(database: Database) -> None:
    ids = [number(index) for index in range(0, OPEN, OPEN // 16)]

    read = await one(database, in_session(lambda session: sagas.lock(session, NAME, ids)))

    assert not read.whole_tables, read.plan
    assert read.rows <= 2 * len(ids), read.plan


@EVEN_WITHOUT_STATISTICS
async def test_a_group_locks_its_sagas_by_ids_and_keys(database: Database) -> None:
    ids = [number(index) for index in range(8)]
    keys = [f"order-{index}" for index in range(100, 108)]

    read = await one(database, in_session(lambda session: sagas.lock(session, NAME, ids, keys)))

    assert not read.whole_tables, read.plan
    assert read.rows <= 2 * (len(ids) + len(keys)), read.plan


@EVEN_WITHOUT_STATISTICS
async def test_a_group_locks_its_sagas_by_keys_alone(database: Database) -> None:
    keys = [f"order-{index}" for index in range(16)]

    read = await one(database, in_session(lambda session: sagas.lock(session, NAME, (), keys)))

    assert not read.whole_tables, read.plan
    assert read.rows <= 2 * len(keys), read.plan


@EVEN_WITHOUT_STATISTICS
async def test_a_group_locks_the_ended_sagas_of_its_keys(database: Database) -> None:
    keys = [f"order-{index}" for index in range(SAGAS - 16, SAGAS)]

    read = await one(database, in_session(lambda session: sagas.lock(session, NAME, (), keys)))

    assert not read.whole_tables, read.plan
    assert read.rows <= 2 * len(keys), read.plan


async def test_the_holders_of_keys_are_found_by_an_index(database: Database) -> None:
    keys = [f"order-{index}" for index in range(16)]

    read = await one(database, in_session(lambda session: sagas.holders_of(session, NAME, keys)))

    assert not read.whole_tables, read.plan
    assert read.rows <= len(keys), read.plan


async def test_sagas_without_a_key_are_looked_for_among_the_open_ones(database: Database) -> None:
    read = await one(database, lambda connection: connection.run_sync(sagas.keyless, NAME))

    assert not read.whole_tables, read.plan
    assert read.rows <= OPEN, read.plan


@even_without_statistics(WRITING)
async def test_what_a_group_has_changed_is_stored_without_reading_other_sagas(
    database: Database,
) -> None:
    changed = [
        SagaRow(number(index), NAME, 1, "running", {}, {}, None, row_version=2)
        for index in range(16)
    ]
    new = SagaRow(number(SAGAS), NAME, 1, "running", {}, {}, None, row_version=1)
    log = [LogEntry(row.id, {"rule": "applied"}) for row in changed]

    async def run(session: AsyncSession) -> None:
        await sagas.store(session, NAME, [*changed, new], log, ["none"])

    for read in await reads(database, in_session(run)):
        assert not [scan for scan in read.scans if "saga" in scan], read.plan


@EVEN_WITHOUT_STATISTICS
async def test_answered_time_outs_are_deleted_by_their_ids(database: Database) -> None:
    ids = [number(index) for index in range(16)]

    read = await one(
        database, in_session(lambda session: sagas.store(session, NAME, cancelled=ids))
    )

    assert not read.whole_tables, read.plan
    assert read.rows <= 2 * len(ids), read.plan


async def test_the_next_time_out_is_one_row(database: Database) -> None:
    read = await one(database, lambda connection: outbox.next_due(connection, NOW), queue=True)

    assert not read.whole_tables, read.plan
    assert read.rows == 1, read.plan


async def test_a_census_reads_the_open_sagas_only(database: Database) -> None:
    read = await one(database, sagas.census)

    assert not read.whole_tables, read.plan
    assert read.rows <= OPEN, read.plan


@pytest.mark.parametrize("step", [None, "approve", "reserve"])
async def test_a_list_reads_only_open_sagas(database: Database, step: str | None) -> None:
    read = await one(
        database,
        lambda connection: sagas.find(connection, statuses=("running",), step=step, most=20),
    )

    assert not read.whole_tables, read.plan
    assert read.rows <= OPEN, read.plan


async def test_a_list_of_one_saga_stops_when_it_is_full(database: Database) -> None:
    read = await one(
        database,
        lambda connection: sagas.find(
            connection, SERVICE, names=(NAME,), statuses=("running",), most=20
        ),
    )

    assert not read.whole_tables, read.plan
    assert read.rows <= 20, read.plan


async def test_a_saga_is_found_by_its_key(database: Database) -> None:
    key = f"order-{SAGAS - 1}"

    read = await one(database, lambda connection: sagas.find(connection, SERVICE, key=key))

    assert not read.whole_tables, read.plan
    assert read.rows <= 2, read.plan


UNICODE = "template0 ENCODING 'UTF8' LOCALE 'C'"
"""What ICU's collations need, whatever encoding the server was made with."""


@pytest.mark.parametrize("beginning", [number(SAGAS - 1), number(1_234)[:-1]])
async def test_a_saga_is_found_by_the_beginning_of_its_id(
    postgres_server: Server, beginning: str
) -> None:
    """Also by a collation that knows a language, by which no index serves a LIKE."""
    async with fresh_database(postgres_server, template=UNICODE) as url:
        await fill(url, is_analyzed=True)
        database = Database(url, service="orders")
        await database.connect()
        async with database.engine.begin() as connection:
            change = 'ALTER TABLE eventmesh_saga ALTER id TYPE varchar(255) COLLATE "en-x-icu"'
            await connection.execute(text(change))
            await connection.execute(text("ANALYZE eventmesh_saga"))

        read = await one(
            database, lambda connection: sagas.find_by_id(connection, "orders", beginning)
        )

        await database.close()
    assert read.scans.keys() == {"Index Scan pk_eventmesh_saga"}, read.plan
    assert read.rows <= 10, read.plan


async def test_ended_sagas_are_purged_a_batch_at_a_time(database: Database) -> None:
    """The first statement finds where the batch ends, the others delete it."""

    async def run(connection: AsyncConnection) -> None:
        later = datetime(2100, 1, 1, tzinfo=UTC)
        assert await purge.purge(connection, purge.ENDED, later, 100)

    for read in await reads(database, run, queue=True):
        assert not read.whole_tables, read.plan
        assert read.rows <= 2 * 101 + 2, read.plan
