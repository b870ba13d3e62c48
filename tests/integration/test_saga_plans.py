"""What PostgreSQL reads for sagas: each statement follows an index and reads few rows, however many
sagas are open and however many have ended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence import migration, outbox, purge, sagas, tables
from eventmesh.persistence.database import AsyncSession, Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.sagas import LogEntry, SagaRow
from eventmesh.wire.envelope import Envelope
from tests.support import units

NAME = "orders.fulfil"
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


EVEN_WITHOUT_STATISTICS = pytest.mark.parametrize(
    "database", [True, False], indirect=True, ids=["analyzed", "new"]
)
"""A table that was filled a moment ago is read as one that PostgreSQL has statistics of."""


@pytest.fixture
async def database(postgres_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    """With sagas, their logs, time-outs, and messages that are due at once; analyzed, as PostgreSQL
    does by itself within a minute or two, or not yet."""
    is_analyzed = getattr(request, "param", True)
    database = Database(postgres_url, service="orders")
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
    yield database
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

    def note(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        if "SAVEPOINT" not in statement:
            seen.append((statement, parameters))

    engine = database.engine.sync_engine
    async with database.queue() if queue else database.connection() as connection:
        # Undone before they are explained, which carries them out again.
        trial = await connection.begin_nested()
        event.listen(engine, "before_cursor_execute", note)
        try:
            await run(connection)
        finally:
            event.remove(engine, "before_cursor_execute", note)
        await trial.rollback()
        found = []
        for statement, parameters in seen:
            explained = await connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
            )
            plan = explained.scalar_one()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            scans: dict[str, int] = {}
            for node in _nodes(plan[0]["Plan"]):
                if "Index Name" in node or "Seq Scan" in node["Node Type"]:
                    rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                    where = node.get("Index Name") or node.get("Relation Name", "")
                    name = f"{node['Node Type']} {where}"
                    scans[name] = scans.get(name, 0) + int(rows * node["Actual Loops"])
            found.append(Read(scans, json.dumps(plan, indent=1)))
    return found


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
        lambda connection: sagas.find(connection, names=(NAME,), statuses=("running",), most=20),
    )

    assert not read.whole_tables, read.plan
    assert read.rows <= 20, read.plan


async def test_a_saga_is_found_by_its_key(database: Database) -> None:
    key = f"order-{SAGAS - 1}"

    read = await one(database, lambda connection: sagas.find(connection, names=(NAME,), key=key))

    assert not read.whole_tables, read.plan
    assert read.rows <= 2, read.plan


async def test_ended_sagas_are_purged_a_batch_at_a_time(database: Database) -> None:
    """The first statement finds where the batch ends, the others delete it."""

    async def run(connection: AsyncConnection) -> None:
        later = datetime(2100, 1, 1, tzinfo=UTC)
        assert await purge.purge(connection, purge.ENDED, later, 100)

    for read in await reads(database, run, queue=True):
        assert not read.whole_tables, read.plan
        assert read.rows <= 2 * 101 + 2, read.plan
