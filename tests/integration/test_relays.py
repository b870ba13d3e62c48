"""What makes a relay quick, and keeps it so: being told, and looking no further than it must."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Column, delete, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.errors import UsageError
from eventmesh.persistence import migration, notify, outbox, purge, starts, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime import horizon, purger, relay
from eventmesh.runtime.purger import Purger
from eventmesh.runtime.relay import Relay
from eventmesh.runtime.retry import Retry, constant
from eventmesh.runtime.service import Service
from eventmesh.runtime.settings import Settings
from eventmesh.runtime.worker import Worker
from eventmesh.transports.memory import MemoryTransport

ALL = range(tables.BUCKETS)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = 30.0


class Happened(Event, name="shop.happened", version=1, key="key"):
    key: str


def shop(url: str, *, ordered: bool = False) -> Service:
    """A service as each of its processes has it."""
    service = Service("shop", ordered_outbox=ordered)
    service.configure(Settings(database_urls={"shop": url}))
    service.publisher(Happened)
    return service


class Broker(MemoryTransport):
    """Tells what was published."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.keys: list[str | None] = []
        self._came = asyncio.Condition()

    async def publish(self, envelopes: Any) -> None:
        self.keys.extend(envelope.key for envelope in envelopes)
        async with self._came:
            self._came.notify_all()

    async def until(self, key: str) -> None:
        async with asyncio.timeout(PATIENCE), self._came:
            await self._came.wait_for(lambda: key in self.keys)


@asynccontextmanager
async def relaying(url: str, broker: Broker) -> AsyncIterator[Database]:
    """A relay in a process of its own, as far as the others can tell."""
    database = Database(url, service="shop")
    stop = asyncio.Event()
    running = Relay("shop", database, broker, SystemClock(), lease_time=30.0)
    task = asyncio.ensure_future(running.run(stop))
    try:
        yield database
    finally:
        stop.set()
        await task
        await database.close()


@pytest.fixture
async def migrated(postgres_url: str) -> str:
    database = Database(postgres_url, service="shop")
    await migration.upgrade(database)
    await database.close()
    return postgres_url


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays do not look by themselves within the time of a test."""
    monkeypatch.setattr(relay, "_SHORTEST_POLL", 2 * PATIENCE)
    monkeypatch.setattr(relay, "_LONGEST_POLL", 2 * PATIENCE)


async def publish(service: Service, key: str) -> None:
    async with service.transaction() as tx:
        tx.publish(Happened(key=key))


class TestBeingTold:
    @pytest.mark.usefixtures("seldom")
    async def test_a_commit_of_another_process_wakes_the_relay(self, migrated: str) -> None:
        broker = Broker()
        async with relaying(migrated, broker), shop(migrated) as other:
            for number in range(20):
                await publish(other, f"k{number}")
                await broker.until(f"k{number}")

    @pytest.mark.usefixtures("seldom")
    async def test_a_relay_whose_listening_connection_was_cut_listens_again(
        self, migrated: str
    ) -> None:
        broker = Broker()
        cut = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'LISTEN %' AND datname = current_database()"
        )
        async with relaying(migrated, broker), shop(migrated) as other:
            await publish(other, "before")
            await broker.until("before")
            async with (await other.database()).reading() as connection:
                assert list(await connection.scalars(cut)) == [True]
            await publish(other, "after")
            await broker.until("after")

    async def test_many_commits_are_told_of_a_few_times(self, migrated: str) -> None:
        told = []
        broker = Broker()
        async with relaying(migrated, broker) as database, shop(migrated) as other:
            bell = (await other.database()).doorbell
            listening = asyncio.ensure_future(notify.listen(database, lambda: told.append(1)))
            await publish(other, "first")
            await broker.until("first")
            told.clear()
            for _ in range(1000):
                bell.ring()
            await publish(other, "last")
            await broker.until("last")
            listening.cancel()
            await asyncio.wait([listening])
        assert len(told) < 10

    async def test_a_relay_that_has_everything_tells_nobody_else(self, migrated: str) -> None:
        async with relaying(migrated, Broker()) as database:
            async with asyncio.timeout(PATIENCE):
                while not database.doorbell.quiet:  # noqa: ASYNC110  # it is no event
                    await asyncio.sleep(0.01)


async def in_use(connection: AsyncConnection) -> tuple[int, int]:
    """How many rows of the outbox and the inbox this transaction has read by an index, and how
    often it has read one of them from end to end."""
    found = await connection.execute(
        text(
            "SELECT coalesce(sum(idx_tup_fetch), 0)::int, coalesce(sum(seq_scan), 0)::int"
            " FROM pg_stat_xact_user_tables WHERE relname LIKE 'eventmesh_%box'"
        )
    )
    return tuple(found.one())  # type: ignore[return-value]


async def fill(connection: AsyncConnection, rows: int, due_at: str) -> None:
    await connection.execute(
        text(
            "INSERT INTO eventmesh_outbox (id, name, key, bucket, headers, data, due_at)"
            " SELECT n, 'n', 'k' || n, n % 16, '{}', 'x', " + due_at + " FROM"
            f" generate_series(1, {rows}) AS n"
        )
    )


class TestLookingNoFurther:
    @pytest.mark.parametrize("statistics", ["none", "of the empty table"])
    @pytest.mark.parametrize(
        ("due_at", "seen"),
        [
            ("NULL", outbox.NOTHING),
            # Delayed rows are passed over once, and again now and then: see Horizon.
            (
                "TIMESTAMPTZ '2025-01-01' + n * interval '1 s'",
                outbox.Seen(30_000, outbox.NOTHING.due_at),
            ),
        ],
        ids=["at once", "delayed"],
    )
    async def test_a_look_reads_what_it_returns_however_many_wait_and_whenever_it_was_planned(
        self, migrated: str, statistics: str, due_at: str, seen: outbox.Seen
    ) -> None:
        database = Database(migrated, service="shop")
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            if statistics != "none":
                await connection.execute(text("VACUUM ANALYZE eventmesh_outbox"))
        for _ in range(10):  # as often as it takes to have a plan that is kept
            async with database.queue(reads=True) as connection:
                assert await outbox.due(connection, ALL, NOW, 100, seen) == []
        async with database.connection() as connection:
            await fill(connection, 30_000, due_at)
        async with database.queue() as connection:
            rows = await outbox.due(connection, ALL, NOW, 100, seen)
            await outbox.delete_confirmed(connection, [row.seq for row in rows])
            read, scans = await in_use(connection)
        await database.close()
        assert len(rows) == 100
        assert scans == 0
        assert read < 500

    async def test_what_is_committed_very_late_is_relayed(
        self, migrated: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Later than what the rounds look at again: the sweep finds it."""
        monkeypatch.setattr(horizon, "LAG", 0.0)
        monkeypatch.setattr(relay, "SWEEP_EVERY", 0.05)
        broker = Broker()
        async with relaying(migrated, broker), shop(migrated) as other:
            async with (await other.database()).session() as late:
                tx = Transaction(late, other.sender())
                tx.publish(Happened(key="late"))
                await outbox.store(late, tx.outgoing, NOW)
                for number in range(5):
                    await publish(other, f"k{number}")
                    await broker.until(f"k{number}")
                await late.finish(proved=True)
            await broker.until("late")
        assert broker.keys.count("late") == 1

    async def test_rows_behind_the_horizon_are_not_read(self, migrated: str) -> None:
        database = Database(migrated, service="shop")
        async with database.connection() as connection:
            await fill(connection, 10_000, "NULL")
        async with database.queue(reads=True) as connection:
            seen = outbox.Seen(9_990, NOW)
            rows = await outbox.due(connection, ALL, NOW, 100, seen)
            read, scans = await in_use(connection)
        await database.close()
        assert [row.seq for row in rows] == list(range(9_991, 10_001))
        assert (read, scans) == (10, 0)


AGES: dict[str, Column[Any]] = {
    "inbox": purge.RECEIVED,
    "starts": purge.BEGUN,
    "sagas": purge.ENDED,
}


async def age(database: Database, moment: datetime, *numbers: int) -> None:
    """Rows of that age in each table."""
    rows = [{"subscription": "s", "message_id": str(n)} for n in numbers]
    ended: dict[str, Any] = {
        "name": "n",
        "version": 1,
        "status": "completed",
        "state": {},
        "steps": {},
        "row_version": 1,
        "started_at": moment,
        "updated_at": moment,
        "ended_at": moment,
    }
    async with database.connection() as connection:
        await connection.execute(
            insert(tables.inbox), [row | {"received_at": moment} for row in rows]
        )
        await connection.execute(
            insert(tables.start), [row | {"starts": 1, "begun_at": moment} for row in rows]
        )
        await connection.execute(insert(tables.saga), [ended | {"id": str(n)} for n in numbers])


async def ids(database: Database, of: Column[Any]) -> list[int]:
    column = of.table.c.get("message_id", of.table.c.get("id"))
    async with database.reading() as connection:
        return sorted(map(int, await connection.scalars(select(column))))


class Frozen(SystemClock):
    def now(self) -> datetime:
        return NOW

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, service="shop")
    await migration.upgrade(database)
    yield database
    await database.close()


class TestPurge:
    @pytest.mark.parametrize("which", AGES)
    async def test_the_oldest_go_first_and_few_at_a_time(
        self, database: Database, which: str
    ) -> None:
        column = AGES[which]
        for number in range(10):
            await age(database, NOW + timedelta(seconds=number), number)
        left = []
        more = True
        while more:
            async with database.queue() as connection:
                more = await purge.purge(connection, column, NOW + timedelta(seconds=8), 3)
            left.append(await ids(database, column))
        assert left == [[4, 5, 6, 7, 8, 9], [8, 9], [8, 9]]

    async def test_nothing_younger_than_its_window_goes(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(purger, "BATCH", 2)
        settings = Settings(inbox_window="1h", saga_window="1d")  # type: ignore[arg-type]
        for hours in (0.5, 2, 23, 25):
            moment = NOW - timedelta(hours=hours)
            await age(database, moment, *(int(10 * hours) * 100 + n for n in range(5)))
        await Purger(database, Frozen(), settings, lambda: True).clear()
        assert {n // 100 for n in await ids(database, purge.RECEIVED)} == {5}
        assert {n // 100 for n in await ids(database, purge.BEGUN)} == {5}
        assert {n // 100 for n in await ids(database, purge.ENDED)} == {5, 20, 230}

    async def test_a_process_whose_task_it_is_not_purges_nothing(self, database: Database) -> None:
        await age(database, NOW - timedelta(days=1000), 1)
        await Purger(database, Frozen(), Settings(), lambda: False).clear()
        assert await ids(database, purge.RECEIVED) == [1]

    async def test_a_saga_that_runs_stays_however_old(self, database: Database) -> None:
        await age(database, NOW - timedelta(days=1000), 1)
        async with database.connection() as connection:
            await connection.execute(tables.saga.update().values(status="running", ended_at=None))
        await Purger(database, Frozen(), Settings(), lambda: True).clear()
        assert await ids(database, purge.ENDED) == [1]

    async def test_only_what_goes_is_read(self, migrated: str) -> None:
        database = Database(migrated, service="shop")
        async with database.connection() as connection:
            await connection.execute(
                text(
                    "INSERT INTO eventmesh_inbox SELECT 's', n,"
                    " TIMESTAMPTZ '2025-01-01' + n * interval '1 s'"
                    " FROM generate_series(1, 30000) AS n"
                )
            )
        async with database.queue() as connection:
            assert await purge.purge(connection, purge.RECEIVED, NOW, 100)
            read, scans = await in_use(connection)
        await database.close()
        assert scans == 0
        assert read < 500

    async def test_a_start_says_when_it_was(self, database: Database) -> None:
        async with database.connection() as connection:
            assert [await starts.note(connection, "s", "1") for _ in range(2)] == [1, 2]
            begun_at = await connection.scalar(select(tables.start.c.begun_at))
            await connection.execute(delete(tables.start))
        assert abs(begun_at - datetime.now(UTC)) < timedelta(minutes=5)

    async def test_a_window_within_which_a_copy_may_come_back_is_refused(
        self, sqlite_url: str
    ) -> None:
        service = Service("shop")

        @service.subscriber(Happened, retry=Retry(attempts=3, backoff=constant("2h")))
        async def note(event: Happened, tx: Any = None) -> None: ...

        settings = Settings(
            database_urls={"shop": sqlite_url},
            inbox_window="2h",  # type: ignore[arg-type]
        )
        service.publisher(Happened)
        worker = Worker([service], MemoryTransport(SystemClock()), settings, SystemClock())
        with pytest.raises(UsageError, match=r"EVENTMESH_INBOX_WINDOW.*shop\.note"):
            await worker.try_out()


class TestTwoWritersOfOneKey:
    """One has put its message into the outbox and not committed yet when the other comes."""

    @staticmethod
    async def write(service: Service, key: str, stored: asyncio.Event, go: asyncio.Event) -> None:
        """Commit, with a pause between the insert and the commit."""
        async with (await service.database()).session() as session:
            tx = Transaction(session, service.sender())
            tx.publish(Happened(key=key))
            if service.ordered_outbox:
                await outbox.take_turns(session, tx.outgoing)
            await outbox.store(session, tx.outgoing, NOW)
            stored.set()
            await go.wait()
            await session.finish(proved=True)

    async def test_those_who_take_turns_commit_in_the_order_of_their_numbers(
        self, migrated: str
    ) -> None:
        async with shop(migrated, ordered=True) as service:
            stored, go = asyncio.Event(), asyncio.Event()
            first = asyncio.ensure_future(self.write(service, "k", stored, go))
            await stored.wait()
            second = asyncio.ensure_future(publish(service, "k"))
            await publish(service, "of another key")  # which waits for nobody
            async with (await service.database()).reading() as connection:
                waits = text(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                )
                async with asyncio.timeout(PATIENCE):
                    while not await connection.scalar(waits):  # noqa: ASYNC110  # it is no event
                        await asyncio.sleep(0.01)
            assert not second.done()
            go.set()
            await asyncio.gather(first, second)
            async with (await service.database()).reading() as connection:
                rows = await outbox.due(connection, ALL, datetime.now(UTC), 100)
        assert [row.envelope.key for row in rows] == ["k", "of another key", "k"]

    async def test_the_others_do_not_wait(self, migrated: str) -> None:
        async with shop(migrated) as service:
            stored, go = asyncio.Event(), asyncio.Event()
            first = asyncio.ensure_future(self.write(service, "k", stored, go))
            await stored.wait()
            await publish(service, "k")
            go.set()
            await first

    async def test_many_keys_at_once_in_any_order_never_stand_in_a_circle(
        self, migrated: str
    ) -> None:
        async def write(keys: list[str]) -> None:
            async with service.transaction() as tx:
                for key in keys:
                    tx.publish(Happened(key=key))

        keys = [f"k{number}" for number in range(50)]
        async with shop(migrated, ordered=True) as service, asyncio.timeout(PATIENCE):
            await asyncio.gather(*(write(keys[:: 1 if n % 2 else -1]) for n in range(20)))
