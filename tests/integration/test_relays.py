"""Relays: wake-ups, leases, economical reads, purging, clocks, rejected messages, ordered
writes."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, Column, delete, event, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from structlog.testing import capture_logs

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import inbox, migration, notifications, outbox, purge, starts, tables
from eventmesh.persistence.database import Database, Scope
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.retry import Retry, constant
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying import polling, purger, relay, sweep, watermark
from eventmesh.runtime.relaying.purger import Purger
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    PublishResult,
    Subscription,
    Transport,
    TransportOptions,
)
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryTransport
from eventmesh.transports.outcome import DONE
from tests.conformance.refusing import refusing
from tests.integration.conftest import HOLD_TIME
from tests.support import units
from tests.support.moved_time import MovedTime
from tests.support.units import outgoing

ALL = range(tables.BUCKETS)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMEOUT_SECONDS = 120.0


class Happened(Event, name="shop.happened", version=1, key="key"):
    key: str


class Noted(Event, name="shop.noted", version=1, key="key"):
    key: str


def shop(url: str, *, ordered: bool = False) -> Service:
    """The service as a process has it."""
    service = Service("shop", ordered_outbox=ordered)
    service.configure(Settings(database_urls={"shop": url}))
    for message in (Happened, Noted):
        service.publisher(message)
    return service


class Broker(MemoryTransport):
    """A broker that records the keys of published messages."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.keys: list[str | None] = []
        self._came = asyncio.Condition()

    async def publish(self, envelopes: Any) -> PublishResult:
        self.keys.extend(envelope.key for envelope in envelopes)
        async with self._came:
            self._came.notify_all()
        return ALL_CONFIRMED

    async def until(self, key: str) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS), self._came:
            await self._came.wait_for(lambda: key in self.keys)


@asynccontextmanager
async def relaying(url: str, broker: Broker, lease_time: float = 30.0) -> AsyncIterator[Database]:
    """Run a relay with its own database connection, as in a separate process."""
    database = Database(url, service="shop")
    stop = asyncio.Event()
    running = Relay("shop", database, broker, SystemClock(), lease_time=lease_time)
    task = asyncio.ensure_future(running.run(stop))
    try:
        yield database
    finally:
        stop.set()
        await task
        await database.close()


@pytest.fixture
def migrated(migrated_postgres_url: str) -> str:
    return migrated_postgres_url


@pytest.fixture
def no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let relays not poll during the test."""
    monkeypatch.setattr(polling, "SHORTEST_PAUSE", 2 * TIMEOUT_SECONDS)
    monkeypatch.setattr(polling, "LONGEST_PAUSE", 2 * TIMEOUT_SECONDS)


async def publish(service: Service, key: str) -> None:
    async with service.transaction() as tx:
        tx.publish(Happened(key=key))


class TestWakeUps:
    @pytest.mark.usefixtures("no_polling")
    async def test_a_program_that_publishes_and_ends_at_once_wakes_the_relay(
        self, migrated: str
    ) -> None:
        broker = Broker()
        async with relaying(migrated, broker):
            for number in range(5):
                async with shop(migrated) as other:
                    database = await other.database()
                    pool = database.engine.pool  # closing puts a new one in its place
                    await publish(other, f"k{number}")
                await broker.until(f"k{number}")
                assert isinstance(pool, AsyncAdaptedQueuePool)
                assert pool.checkedin() + pool.checkedout() == 0  # nothing is left open

    @pytest.mark.usefixtures("no_polling")
    async def test_a_commit_of_another_process_wakes_the_relay(self, migrated: str) -> None:
        broker = Broker()
        async with relaying(migrated, broker), shop(migrated) as other:
            for number in range(20):
                await publish(other, f"k{number}")
                await broker.until(f"k{number}")

    @pytest.mark.usefixtures("no_polling")
    async def test_a_relay_listens_again_after_its_connection_was_lost(self, migrated: str) -> None:
        broker = Broker()
        cut = text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE query LIKE 'LISTEN %' AND datname = current_database()"
        )
        async with relaying(migrated, broker), shop(migrated) as other:
            await publish(other, "before")
            await broker.until("before")
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                (await other.database()).reading() as connection,
            ):
                # No event.
                while not (ended := list(await connection.scalars(cut))):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert ended == [True]
            await publish(other, "after")
            await broker.until("after")

    @pytest.mark.usefixtures("no_polling")
    async def test_several_batches_are_relayed_after_one_wake_up(
        self, migrated: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "BATCH", 2)
        broker = Broker()
        async with shop(migrated) as other, other.transaction() as tx:
            for number in range(20):
                tx.publish(Happened(key=f"k{number}"))
        async with relaying(migrated, broker):
            await broker.until("k19")

    async def test_a_wake_up_causes_only_one_round(
        self, migrated: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for pause in ("SHORTEST_PAUSE", "NOTIFIED_PAUSE", "LONGEST_PAUSE"):
            monkeypatch.setattr(polling, pause, 2 * TIMEOUT_SECONDS)
        rounds, due = 0, outbox.due

        def counted(*arguments: Any, **options: Any) -> list[outbox.OutboxRow]:
            nonlocal rounds
            rounds += not options.get("up_to")  # the sweep's, which comes each second
            return due(*arguments, **options)

        monkeypatch.setattr(outbox, "due", counted)
        broker, number = Broker(), 20
        async with relaying(migrated, broker), shop(migrated) as other:
            await publish(other, "first")
            await broker.until("first")
            rounds = 0
            for each in range(number):
                await publish(other, f"k{each}")
                await broker.until(f"k{each}")
        # There is one more once the relay listens; without coalescing there would be two for each.
        assert rounds < 1.5 * number

    async def test_many_commits_send_few_notifications(self, migrated: str) -> None:
        notified = []
        broker = Broker()
        async with relaying(migrated, broker) as database, shop(migrated) as other:
            notifier = (await other.database()).notifier
            listening = asyncio.ensure_future(
                notifications.listen(database, lambda: notified.append(1))
            )
            await publish(other, "first")
            await broker.until("first")
            notified.clear()
            for _ in range(1000):
                notifier.notify_soon()
            await publish(other, "last")
            await broker.until("last")
            listening.cancel()
            await asyncio.wait([listening])
        assert len(notified) < 10

    async def test_a_relay_that_holds_all_buckets_sends_no_notifications(
        self, migrated: str
    ) -> None:
        async with relaying(migrated, Broker()) as database:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while not database.notifier.is_muted:  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.01)


class NamesKept(Broker):
    """A broker that records the names of messages, and rejects those of one name."""

    rejected_name = ""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    async def publish(self, envelopes: Any) -> PublishResult:
        self.names += [each.name for each in envelopes if each.name != self.rejected_name]
        rejected = {each.id: "full" for each in envelopes if each.name == self.rejected_name}
        return PublishResult(rejected=rejected)


class TestHandover:
    """A relay need not read what its own process has committed."""

    async def test_own_messages_are_relayed_without_a_read(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for pause in ("SHORTEST_PAUSE", "NOTIFIED_PAUSE", "LONGEST_PAUSE"):
            monkeypatch.setattr(polling, pause, 2 * TIMEOUT_SECONDS)
        # A relay reads once it listens, whenever that is: others may have committed before.
        monkeypatch.setattr(polling.Polling, "listen", lambda _: asyncio.Event().wait())
        reads, due = 0, outbox.due

        def counted(*arguments: Any, **options: Any) -> list[outbox.OutboxRow]:
            nonlocal reads
            reads += not options.get("up_to")  # the sweep's, which comes each second
            return due(*arguments, **options)

        monkeypatch.setattr(outbox, "due", counted)
        pausing, wait = False, polling.Polling.wait

        async def pause(self: polling.Polling) -> None:
            nonlocal pausing
            pausing = True
            await wait(self)
            pausing = False

        monkeypatch.setattr(polling.Polling, "wait", pause)
        broker, stop, number = Broker(), asyncio.Event(), 20
        async with shop(database.url.render_as_string(hide_password=False)) as own:
            running = await relay_of(own, broker)
            task = asyncio.ensure_future(running.run(stop))
            await publish(own, "first")
            await broker.until("first")
            async with asyncio.timeout(TIMEOUT_SECONDS):  # it may read once more before it waits
                while running.polling.is_reading_due or not pausing:  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.01)
            reads = 0
            for each in range(number):
                await publish(own, f"k{each}")
                await broker.until(f"k{each}")
            assert reads == 0
            stop.set()
            await task
        assert broker.keys == ["first", *(f"k{each}" for each in range(number))]
        async with database.reading() as connection:
            assert await connection.scalar(select(func.count()).select_from(tables.outbox)) == 0

    async def test_an_older_message_of_another_process_comes_first(
        self, database: Database
    ) -> None:
        url, broker = database.url.render_as_string(hide_password=False), NamesKept()
        async with shop(url) as own, shop(url) as other:
            running = await relay_of(own, broker)
            await running.round()
            for number in range(1, 4):
                async with other.transaction() as tx:
                    tx.publish(Noted(key="k"))
                await publish(own, "k")
                await noticed(running)
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    # The relay's estimate of the database's time may be a moment behind.
                    while len(broker.names) < 2 * number:
                        await running.round()
                assert broker.names == ["shop.noted", "shop.happened"] * number
            await running.leases.release()

    async def test_a_rejected_message_holds_back_its_key(self, database: Database) -> None:
        broker = NamesKept()
        broker.rejected_name = "shop.noted"
        async with shop(database.url.render_as_string(hide_password=False)) as own:
            running = await relay_of(own, broker)
            await running.round()
            async with own.transaction() as tx:
                tx.publish(Noted(key="k"))
            await noticed(running)
            await running.round()
            for key in ("k", "another"):
                await publish(own, key)
            await noticed(running)
            await running.round()
            assert broker.names == ["shop.happened"]
            await running.leases.release()


async def relay_of(service: Service, broker: Broker) -> Relay:
    """A relay in the same process as the service."""
    made = Relay("shop", await service.database(), broker, SystemClock(), lease_time=30.0)
    service.on_commit(made.notice)
    return made


async def noticed(running: Relay) -> None:
    """Until a commit has handed its rows over."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while running.handover.is_empty:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0)


class TestWrites:
    async def test_a_transaction_that_only_publishes_is_one_statement(self, migrated: str) -> None:
        """Without a BEGIN and a COMMIT, each of which would be a round trip to the server."""
        statements: list[str] = []
        async with shop(migrated) as service:
            database = await service.database()
            database.notifier.is_muted = True
            await publish(service, "first")  # after which the driver knows the types
            async with database.engine.connect() as connection:
                driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            driver.add_query_logger(lambda record: statements.append(record.query))
            event.listen(
                database.engine.sync_engine,
                "before_cursor_execute",
                lambda _connection, _cursor, statement, *_: statements.append(statement),
            )
            async with service.transaction() as tx:
                tx.publish(Happened(key="a"))
                tx.publish(Noted(key="b"), delay=60)
            assert [each.split()[:2] for each in statements] == [["WITH", "counted"]]
            async with database.reading() as connection:
                assert await connection.scalar(select(func.count()).select_from(tables.outbox)) == 3

    async def test_messages_are_committed_with_what_the_session_did(self, migrated: str) -> None:
        async with shop(migrated) as service:
            with suppress(RuntimeError):
                async with service.transaction() as tx:
                    await tx.session.execute(text("CREATE TABLE kept (n integer)"))
                    tx.publish(Happened(key="a"))
                    raise RuntimeError
            async with service.transaction() as tx:
                tx.publish(Happened(key="b"))
                await tx.session.execute(text("CREATE TABLE kept (n integer)"))
            async with (await service.database()).reading() as connection:
                assert list(await connection.scalars(select(tables.outbox.c.key))) == ["b"]
                assert not list(await connection.scalars(text("SELECT n FROM kept")))


class Slow(Broker):
    """A broker that confirms nothing before `may_confirm` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_confirm = asyncio.Event()

    async def publish(self, envelopes: Any) -> PublishResult:
        result = await super().publish(envelopes)
        await self.may_confirm.wait()
        return result


class TestLeases:
    @pytest.mark.parametrize("second_starts_later", [False, True], ids=["running", "started later"])
    async def test_a_batch_at_a_slow_broker_is_not_published_by_another_relay(
        self, database: Database, second_starts_later: bool
    ) -> None:
        url = database.url.render_as_string(hide_password=False)
        slow, quick = Slow(), Broker()
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(shop(url))
            await stack.enter_async_context(relaying(url, slow, LEASE))
            if not second_starts_later:
                await stack.enter_async_context(relaying(url, quick, LEASE))
            await holders(database, 1 if second_starts_later else 2)
            await publish_to_all(other)
            await until(lambda: bool(slow.keys))
            if second_starts_later:
                await stack.enter_async_context(relaying(url, quick, LEASE))
            first_end = await last_expiry(database)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                enough = first_end + timedelta(seconds=1.2 * LEASE)
                while await last_expiry(database) < enough:  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.05)
            slow.may_confirm.set()
            await until(lambda: {*slow.keys, *quick.keys} == {*KEYS})
        assert sorted(slow.keys + quick.keys) == sorted(KEYS)

    async def test_relays_continue_after_all_tables_were_emptied(self, database: Database) -> None:
        url = database.url.render_as_string(hide_password=False)
        brokers = Broker(), Broker()
        async with AsyncExitStack() as stack:
            other = await stack.enter_async_context(shop(url))
            for broker in brokers:
                await stack.enter_async_context(relaying(url, broker, LEASE))
            async with database.connection() as connection:
                for table in (tables.lease, tables.relay, tables.outbox, tables.inbox):
                    await connection.execute(delete(table))
            await publish_to_all(other)
            await until(lambda: {*brokers[0].keys, *brokers[1].keys} == {*KEYS})


LEASE = 5.0
KEYS = [f"k{number}" for number in range(50)]


async def until(this: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not this():  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.05)


async def publish_to_all(service: Service) -> None:
    async with service.transaction() as tx:
        for key in KEYS:
            tx.publish(Happened(key=key))


async def holders(database: Database, count: int) -> None:
    """Return once this number of relays have equal shares of all buckets."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            async with database.reading() as connection:
                held = Counter(await connection.scalars(select(tables.lease.c.owner)))
            if None not in held and list(held.values()) == [tables.BUCKETS // count] * count:
                return
            await asyncio.sleep(0.05)


async def last_expiry(database: Database) -> datetime:
    """When the last of the leases expires; long ago if there is none."""
    async with database.reading() as connection:
        ends = await connection.scalars(select(tables.lease.c.expires_at))
        return max((end for end in ends if end), default=NOW - timedelta(days=9999))


async def rows_and_scans(connection: AsyncConnection) -> tuple[int, int]:
    """How many rows of the outbox and the inbox this transaction has read by an index, and how many
    sequential scans of them it has made."""
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


class TestReading:
    async def test_an_idle_relay_asks_only_whether_there_is_something(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads, due = 0, outbox.due

        def counted(*arguments: Any, **options: Any) -> list[outbox.OutboxRow]:
            nonlocal reads
            reads += 1
            return due(*arguments, **options)

        monkeypatch.setattr(outbox, "due", counted)
        url, broker = database.url.render_as_string(hide_password=False), Broker()
        async with shop(url) as own, shop(url) as other:
            running = await relay_of(own, broker)
            await running.round()
            reads = 0
            for _ in range(3):
                await running.round()
            assert reads == 0
            async with other.transaction() as tx:
                tx.publish(Happened(key="at once"))
                tx.publish(Noted(key="delayed"), delay=0.01)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while len(broker.keys) < 2:
                    await running.round()
            assert broker.keys == ["at once", "delayed"]
            await running.leases.release()

    @pytest.mark.parametrize("statistics", ["none", "of the empty table"])
    @pytest.mark.parametrize(
        ("due_at", "seen"),
        [
            ("NULL", outbox.START),
            # Delayed rows stay behind the watermark, where only sweeps read by number.
            (
                "TIMESTAMPTZ '2025-01-01' + n * interval '1 s'",
                outbox.Position(30_000, outbox.START.due_at),
            ),
        ],
        ids=["at once", "delayed"],
    )
    async def test_a_round_reads_only_about_as_many_rows_as_it_returns(
        self, migrated: str, statistics: str, due_at: str, seen: outbox.Position
    ) -> None:
        database = Database(migrated, service="shop")
        async with database.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            if statistics != "none":
                await connection.execute(text("VACUUM ANALYZE eventmesh_outbox"))
        for _ in range(10):  # often enough for PostgreSQL to keep a generic plan
            async with database.queue("reads") as connection:
                assert await connection.run_sync(outbox.due, ALL, NOW, 100, seen) == []
        async with database.connection() as connection:
            await fill(connection, 30_000, due_at)
        async with database.queue() as connection:
            rows = await connection.run_sync(outbox.due, ALL, NOW, 100, seen)
            await outbox.delete_confirmed(connection, rows)
            read, scans = await rows_and_scans(connection)
        await database.close()
        assert len(rows) == 100
        assert scans == 0
        assert read < 500

    async def test_only_connections_for_work_queues_have_their_settings(
        self, migrated: str
    ) -> None:
        database = Database(migrated, service="shop")
        setting = text("SELECT current_setting('synchronous_commit')")
        for _ in range(2):
            for scope in get_args(Scope):
                async with database.queue(scope) as connection:
                    assert await connection.scalar(setting) == "off"
            async with database.connection() as connection:
                assert await connection.scalar(setting) == "on"
        await database.close()

    async def test_a_single_statement_needs_no_commit(self, migrated: str) -> None:
        """And a transaction does, whatever its connection was used for before."""
        database = Database(migrated, service="shop")
        async with database.connection() as connection:
            await fill(connection, 2, "NULL")

        async def left_after_deleting_one(scope: Scope) -> int:
            async with database.queue(scope) as connection:
                first = select(func.min(tables.outbox.c.seq)).scalar_subquery()
                await connection.execute(delete(tables.outbox).where(tables.outbox.c.seq == first))
                async with database.reading() as other:
                    rows = select(func.count()).select_from(tables.outbox)
                    return await other.scalar(rows) or 0

        assert await left_after_deleting_one("statement") == 1
        assert await left_after_deleting_one("transaction") == 1
        await database.close()

    async def test_a_very_late_commit_is_relayed(
        self, migrated: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """By then it is behind the watermark, where the sweep finds it."""
        monkeypatch.setattr(watermark, "SHORTEST_WAIT", 0.0)
        monkeypatch.setattr(sweep, "SWEEP_INTERVAL", 0.05)
        broker = Broker()
        async with relaying(migrated, broker), shop(migrated) as other:
            async with (await other.database()).connection() as late:
                await units.store(late, outgoing(other, Happened(key="late")))
                for number in range(5):
                    await publish(other, f"k{number}")
                    await broker.until(f"k{number}")
            await broker.until("late")
        assert broker.keys.count("late") == 1

    async def test_rows_behind_the_watermark_are_not_read(self, migrated: str) -> None:
        database = Database(migrated, service="shop")
        async with database.connection() as connection:
            await fill(connection, 10_000, "NULL")
        async with database.queue() as connection:
            seen = outbox.Position(9_990, NOW)
            rows = await connection.run_sync(outbox.due, ALL, NOW, 100, seen)
            read, scans = await rows_and_scans(connection)
        await database.close()
        assert [row.seq for row in rows] == list(range(9_991, 10_001))
        assert (read, scans) == (10, 0)


AGES: dict[str, Column[Any]] = {
    "inbox": purge.RECEIVED,
    "starts": purge.BEGUN,
    "sagas": purge.ENDED,
    "reactions": purge.REACTED,
    "actions": purge.ACTED,
}


async def age(database: Database, moment: datetime, *numbers: int) -> None:
    """Insert rows of that age into each table."""
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
        done: dict[str, Any] = {"subscription": "s", "status": "done", "updated_at": moment}
        await connection.execute(
            insert(tables.reaction),
            [done | {"key": str(n), "message_id": str(n)} for n in numbers],
        )
        acted: dict[str, Any] = {"at": moment, "service": "shop", "who": "ada", "what": "replay"}
        acted |= {"reason": "", "details": {}}
        await connection.execute(
            insert(tables.action), [acted | {"subject": str(n)} for n in numbers]
        )


async def ids(database: Database, of: Column[Any]) -> list[int]:
    columns = of.table.c
    column = next(columns[name] for name in ("message_id", "id", "subject") if name in columns)
    async with database.reading() as connection:
        return sorted(map(int, await connection.scalars(select(column))))


class NoSleep(SystemClock):
    """A clock whose sleeps take no time."""

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
    async def test_the_oldest_rows_are_purged_first_and_in_small_batches(
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

    async def test_no_row_younger_than_its_window_is_purged(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(purger, "BATCH", 2)
        windows: dict[str, Any] = {"inbox_window": "1h", "saga_window": "1d"}
        windows |= {"reaction_window": "3h", "action_window": "24h"}
        settings = Settings(**windows)
        for hours in (0.5, 2, 23, 25):
            moment = datetime.now(UTC) - timedelta(hours=hours)
            await age(database, moment, *(int(10 * hours) * 100 + n for n in range(5)))
        await Purger(database, NoSleep(), settings, lambda: True).purge()
        assert {n // 100 for n in await ids(database, purge.RECEIVED)} == {5}
        assert {n // 100 for n in await ids(database, purge.BEGUN)} == {5}
        assert {n // 100 for n in await ids(database, purge.ENDED)} == {5, 20, 230}
        assert {n // 100 for n in await ids(database, purge.REACTED)} == {5, 20}
        assert {n // 100 for n in await ids(database, purge.ACTED)} == {5, 20, 230}

    async def test_tables_without_old_rows_are_only_read(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def unexpected(*_: object) -> bool:
            raise AssertionError("nothing is too old")

        await age(database, datetime.now(UTC), 1)
        monkeypatch.setattr(purge, "purge", unexpected)
        await Purger(database, NoSleep(), Settings(), lambda: True).purge()

    async def test_only_the_relay_with_the_first_bucket_purges(self, database: Database) -> None:
        await age(database, NOW - timedelta(days=1000), 1)
        await Purger(database, NoSleep(), Settings(), lambda: False).purge()
        assert await ids(database, purge.RECEIVED) == [1]

    async def test_a_running_saga_is_never_purged(self, database: Database) -> None:
        await age(database, NOW - timedelta(days=1000), 1)
        async with database.connection() as connection:
            await connection.execute(
                tables.saga.update().values(status="running", ended_at=None, is_open=True)
            )
        await Purger(database, NoSleep(), Settings(), lambda: True).purge()
        assert await ids(database, purge.ENDED) == [1]

    async def test_a_purge_reads_only_about_as_many_rows_as_it_deletes(self, migrated: str) -> None:
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
            read, scans = await rows_and_scans(connection)
        await database.close()
        assert scans == 0
        assert read < 500

    async def test_the_start_of_a_delivery_records_its_time(self, database: Database) -> None:
        async with database.connection() as connection:
            assert [await starts.note(connection, "s", "1") for _ in range(2)] == [1, 2]
            begun_at = await connection.scalar(select(tables.start.c.begun_at))
            await connection.execute(delete(tables.start))
        assert abs(begun_at - datetime.now(UTC)) < timedelta(minutes=5)

    @pytest.mark.parametrize(
        "retry",
        [
            Retry(attempts=3, backoff=constant("2h")),
            Retry(attempts=1, per_error={KeyError: Retry(attempts=3, backoff=constant("2h"))}),
        ],
        ids=["backoff", "per_error"],
    )
    async def test_an_inbox_window_shorter_than_the_retry_delays_is_a_usage_error(
        self, sqlite_url: str, retry: Retry
    ) -> None:
        service = Service("shop")

        @service.subscriber(Happened, retry=retry)
        async def note(event: Happened, tx: Any = None) -> None: ...

        settings = Settings(
            database_urls={"shop": sqlite_url},
            inbox_window="2h",  # type: ignore[arg-type]
        )
        service.publisher(Happened)
        worker = Worker([service], MemoryTransport(SystemClock()), settings, SystemClock())
        with pytest.raises(UsageError, match=r"EVENTMESH_INBOX_WINDOW.*shop\.note"):
            await worker.try_out()


class WrongClock(NoSleep):
    """The clock of a process that is wrong by a fixed amount."""

    def __init__(self, **by: float) -> None:
        self.by = timedelta(**by)

    def now(self) -> datetime:
        return super().now() + self.by


@pytest.mark.parametrize("database_url", ["sqlite", "postgres", "mariadb"], indirect=True)
class TestClocks:
    """Receipt, delays and purging use the database's clock, not that of the process."""

    @pytest.mark.parametrize("days", [8, -8])
    async def test_a_process_with_a_wrong_clock_logs_it_and_purges_nothing(
        self, database: Database, days: int
    ) -> None:
        received = datetime.now(UTC) - timedelta(days=6)
        await age(database, received, 1)
        purging = Purger(database, WrongClock(days=days), Settings(), lambda: True)
        with capture_logs() as lines:
            running = asyncio.ensure_future(purging.run())
            await until(lambda: bool(lines))
            running.cancel()
            await asyncio.wait([running])
        assert await ids(database, purge.RECEIVED) == [1]
        side = "ahead of" if days > 0 else "behind"
        assert lines[0]["event"] == "clocks differ"
        assert f"691,200 s {side} that of the database of service shop" in lines[0]["problem"]

    async def test_a_process_with_a_correct_clock_purges_old_rows(self, database: Database) -> None:
        for number, days in enumerate((6, 8)):
            await age(database, datetime.now(UTC) - timedelta(days=days), number)
        await Purger(database, WrongClock(seconds=20), Settings(), lambda: True).purge()
        assert await ids(database, purge.RECEIVED) == [0]

    @pytest.mark.parametrize("days", [8, -8])
    async def test_receipt_and_due_times_are_the_databases_time(
        self, database: Database, days: int
    ) -> None:
        """Even if a service's clock is wrong, its inbox entries are not old at once, and a message
        that it delays by a minute is due in a minute, for every process."""
        service = Service("shop", clock=WrongClock(days=days))
        url = database.url.render_as_string(hide_password=False)
        service.configure(Settings(database_urls={"shop": url}))
        service.publisher(Happened)
        async with service, service.transaction() as tx:
            tx.publish(Happened(key="a"), delay="1m")
            await inbox.claim(tx.session, "s", [inbox.Entry("1", 1)])
        async with database.reading() as connection:
            now = await database.time.ask(connection)
            received_at = await connection.scalar(select(tables.inbox.c.received_at))
            due_at = await connection.scalar(select(tables.outbox.c.due_at))
        # An hour allows for a slow machine, and is far less than the error of the clock.
        assert abs(now - received_at) < timedelta(hours=1)
        assert abs(now + timedelta(minutes=1) - due_at) < timedelta(hours=1)


class UnreachableAtFirst(Broker):
    """A broker that is unreachable at first."""

    is_unreachable = True

    async def publish(self, envelopes: Any) -> PublishResult:
        if self.is_unreachable:
            return PublishResult.interrupted(envelopes, Unreachable("no broker"))
        return await super().publish(envelopes)


class TestWaiting:
    async def test_waiting_for_the_broker_and_its_return_are_logged(self, sqlite_url: str) -> None:
        broker = UnreachableAtFirst()
        with capture_logs() as lines:
            async with shop(sqlite_url) as other:
                await publish(other, "a")
                async with relaying(sqlite_url, broker):
                    await until(lambda: bool(lines))
                    broker.is_unreachable = False
                    await broker.until("a")
                    await until(lambda: lines[-1]["log_level"] == "info")
        events = [line["event"] for line in lines]
        assert set(events[:-1]) == {"outbox relay waiting for broker"}
        assert events[-1] == "outbox relay publishing again"
        assert {line["service"] for line in lines} == {"shop"}


class Moved(SystemClock):
    """A clock that only the test moves forward."""

    ahead = timedelta()

    def now(self) -> datetime:
        return NOW + self.ahead


async def consume(transport: Transport, subscription: Subscription, count: int) -> list[str | None]:
    """Consume this number of messages; returns their keys."""
    keys: list[str | None] = []
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        transport.consume(subscription, prefetch=10) as consumer,
    ):
        while len(keys) < count:
            got = await consumer.receive(count - len(keys))
            await consumer.settle([(delivery, DONE) for delivery in got])
            keys += [delivery.envelope.key for delivery in got]
    return keys


class TestRejectedMessages:
    @pytest.mark.usefixtures("long_holds")
    @pytest.mark.parametrize("broker", ["redis", "amqp"])
    async def test_a_rejected_message_blocks_its_key_and_no_other(
        self, broker: str, durable_url: Callable[[str], str], sqlite_url: str
    ) -> None:
        """It also blocks messages of its key with other names, which the broker would accept."""
        noting = Subscription("shop.note", ("shop.noted",))
        happening = Subscription("shop.happen", ("shop.happened",))
        clock, url, prefix = Moved(), durable_url(broker), f"t{secrets.token_hex(5)}"
        options = TransportOptions(prefix=prefix)
        async with open_transport(url, clock, options) as transport, shop(sqlite_url) as service:
            database = await service.database()
            database.time = MovedTime(clock)
            await migration.upgrade(database)
            await transport.declare([happening])
            async with service.transaction() as tx:
                for message in (Noted(key="a"), *(Happened(key=key) for key in "aba")):
                    tx.publish(message)
            relaying = Relay("shop", database, transport, clock, lease_time=30.0)
            async with refusing(url, prefix, "shop.noted"):
                assert (await relaying.round()).confirmed == 1
            assert await self.waiting(database) == [("shop.noted", 1), *2 * [("shop.happened", 0)]]
            assert await consume(transport, happening, 1) == ["b"]
            assert (await relaying.round()).confirmed == 0
            clock.ahead += timedelta(seconds=HOLD_TIME)
            assert (await relaying.round()).confirmed == 1
            assert await consume(transport, noting, 1) == ["a"]
            assert (await relaying.round()).confirmed == 2
            assert await consume(transport, happening, 2) == ["a", "a"]
            assert await self.waiting(database) == []

    @staticmethod
    async def waiting(database: Database) -> list[tuple[str, int]]:
        """The names of the messages in the outbox, and how often each was rejected."""
        columns = select(tables.outbox.c.name, tables.outbox.c.attempts)
        async with database.reading() as connection:
            rows = await connection.execute(columns.order_by(tables.outbox.c.seq))
            return [tuple(row) for row in rows]


class TestTwoWritersOfOneKey:
    """The first writer has stored its message, but not committed, when the second one writes."""

    @staticmethod
    async def write(service: Service, key: str, stored: asyncio.Event, go: asyncio.Event) -> None:
        """Store a message, and commit when the test sets `go`."""
        messages = outgoing(service, Happened(key=key))
        async with (await service.database()).connection() as connection:
            await units.store(connection, messages, ordered=service.ordered_outbox)
            stored.set()
            await go.wait()

    async def test_in_an_ordered_outbox_writers_of_a_key_commit_in_order(
        self, migrated: str
    ) -> None:
        async with shop(migrated, ordered=True) as service:
            stored, go = asyncio.Event(), asyncio.Event()
            first = asyncio.ensure_future(self.write(service, "k", stored, go))
            await stored.wait()
            second = asyncio.ensure_future(publish(service, "k"))
            await publish(service, "of another key")  # another key does not wait
            async with (await service.database()).reading() as connection:
                waits = text(
                    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                )
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while not await connection.scalar(waits):  # noqa: ASYNC110  # no event
                        await asyncio.sleep(0.01)
            assert not second.done()
            go.set()
            await asyncio.gather(first, second)
            async with (await service.database()).reading() as connection:
                rows = await connection.run_sync(outbox.due, ALL, datetime.now(UTC), 100)
        assert [row.envelope.key for row in rows] == ["k", "of another key", "k"]

    async def test_in_a_normal_outbox_writers_of_a_key_do_not_wait(self, migrated: str) -> None:
        async with shop(migrated) as service:
            stored, go = asyncio.Event(), asyncio.Event()
            first = asyncio.ensure_future(self.write(service, "k", stored, go))
            await stored.wait()
            await publish(service, "k")
            go.set()
            await first

    async def test_concurrent_writers_of_many_keys_in_any_order_do_not_deadlock(
        self, migrated: str
    ) -> None:
        async def write(keys: list[str]) -> None:
            async with service.transaction() as tx:
                for key in keys:
                    tx.publish(Happened(key=key))

        keys = [f"k{number}" for number in range(50)]
        async with shop(migrated, ordered=True) as service, asyncio.timeout(TIMEOUT_SECONDS):
            await asyncio.gather(*(write(keys[:: 1 if n % 2 else -1]) for n in range(20)))
