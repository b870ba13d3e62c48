"""What a service's database promises on SQLite, MariaDB and PostgreSQL, and on an older and a newer
version of PostgreSQL where both are available."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, MetaData, Table, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from eventmesh import Event, Service, Settings, Transaction
from eventmesh.errors import Drift, Unreachable, UsageError
from eventmesh.persistence import counts, inbox, leases, migration, outbox, purge, sagas, tables
from eventmesh.persistence.counts import Way
from eventmesh.persistence.database import AsyncSession, Database
from eventmesh.persistence.dialects.registry import MARIADB
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.dialects.tcp import SILENCE
from eventmesh.persistence.inbox import Entry
from eventmesh.persistence.outbox import Outgoing, Rejection, bucket_of
from eventmesh.persistence.sagas import SagaRow
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.testing.servers import WAYS, fresh_database
from eventmesh.transports.base import Delivery
from eventmesh.wire.envelope import Envelope, seal
from tests.support import units
from tests.support.migrated_databases import MigratedDatabases
from tests.support.moved_clock import MovedClock
from tests.support.proxy import proxy_before
from tests.support.units import unit_of_work

if TYPE_CHECKING:
    from tests.conftest import Servers

ALL = range(tables.BUCKETS)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def kinds() -> list[str]:
    """Every database that is available. For PostgreSQL that is either the server that the
    environment names, or one server of each version."""
    given = os.environ.get("EVENTMESH_TEST_POSTGRES_URL")
    return ["sqlite", "mariadb", *(["postgres"] if given else [f"postgres-{way}" for way in WAYS])]


@pytest.fixture(params=kinds())
async def database_url(
    request: pytest.FixtureRequest, servers: Servers, tmp_path: Path
) -> AsyncIterator[str]:
    """A new, empty database of each kind in turn."""
    kind, _, way = request.param.partition("-")
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path}/service.db"
        return
    server = servers.had_by(kind, way) if way else servers.find(kind)
    async with fresh_database(server) as url:
        yield url


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Database]:
    """A database without any table."""
    database = Database(database_url, service="shop")
    yield database
    await database.close()


@pytest.fixture(params=kinds())
async def database(
    request: pytest.FixtureRequest,
    servers: Servers,
    migrated_databases: MigratedDatabases,
    tmp_path: Path,
) -> AsyncIterator[Database]:
    """A migrated database of each kind in turn."""
    kind, _, way = request.param.partition("-")
    async with AsyncExitStack() as stack:
        if kind == "sqlite":
            url = migrated_databases.sqlite_url(tmp_path)
        else:
            server = servers.had_by(kind, way) if way else servers.find(kind)
            copies = {
                "postgres": migrated_databases.postgres_url,
                "mariadb": migrated_databases.mariadb_url,
            }
            url = await stack.enter_async_context(copies[kind](server))
        database = Database(url, service="shop")
        stack.push_async_callback(database.close)
        yield database


class Happened(Event, name="t.happened", version=1):
    pass


def message(number: int, *, key: str | None = "k", delay: float = 0.0) -> Outgoing:
    attributes = {"specversion": "1.0", "id": f"m{number}", "source": "/t", "type": "t.happened"}
    if key is not None:
        attributes["partitionkey"] = key
    return Outgoing(Envelope(attributes, b"%d" % number), delay)


async def store(database: Database, *messages: Outgoing, now: datetime = NOW) -> None:
    async with database.connection() as connection:
        await units.store(connection, messages, now=now)


OLDER = {"subscription": "s", "message_id": "older", "received_at": NOW}
"""An inbox row from before digests were stored."""


async def claim(session: AsyncSession, subscription: str, *ids: str) -> set[str]:
    """Claim these ids; returns those that were not in the inbox before."""
    return (await inbox.claim(session, subscription, [Entry(each, 1) for each in ids])).fresh


async def due(database: Database, *, now: datetime = NOW, limit: int = 100) -> list[str]:
    async with database.reading() as connection:
        rows = await connection.run_sync(outbox.due, ALL, now, limit)
    return [row.envelope.id for row in rows]


class TestMigration:
    async def test_migrations_create_the_tables_that_the_code_uses(
        self, database: Database
    ) -> None:
        # On MariaDB a generated column replaces a partial index, and false is 0.
        is_mariadb = database.dialect is MARIADB
        partial = {"ix_eventmesh_outbox_refused", "ix_eventmesh_outbox_delayed_id"}
        other = {"refused_key", *partial} if is_mariadb else ()

        def differences(connection: object) -> list[object]:
            context = MigrationContext.configure(
                connection,  # type: ignore[arg-type]
                opts={
                    "include_name": lambda name, kind, _: (
                        kind != "table" or name in tables.metadata.tables
                    ),
                    "include_object": lambda _object, name, *_: name not in other,
                    "compare_server_default": not is_mariadb,
                },
            )
            return list(compare_metadata(context, tables.metadata))

        async with database.connection() as connection:
            assert await connection.run_sync(differences) == []

    async def test_the_newest_migration_is_the_one_that_the_code_requires(self) -> None:
        config = Config()
        config.set_main_option("script_location", "eventmesh:persistence/migrations")
        assert ScriptDirectory.from_config(config).get_current_head() == migration.HEAD

    async def test_upgrading_twice_changes_nothing(self, empty: Database) -> None:
        assert await migration.upgrade(empty) is True
        assert await migration.upgrade(empty) is False

    async def test_processes_that_upgrade_at_the_same_time_wait_for_each_other(
        self, empty: Database
    ) -> None:
        other = Database(empty.url.render_as_string(hide_password=False), service="shop")
        try:
            changed = await asyncio.gather(*(migration.upgrade(each) for each in (empty, other)))
        finally:
            await other.close()
        assert sorted(changed) == [False, True]

    async def test_missing_tables_are_drift_and_the_error_names_the_command(
        self, empty: Database
    ) -> None:
        with pytest.raises(Drift, match="eventmesh db upgrade shop"):
            await migration.require_current(empty)

    @pytest.mark.parametrize("version", ["0001", "0002", "0003"])
    async def test_a_database_of_an_older_version_is_upgraded_while_its_relay_runs(
        self, empty: Database, version: str
    ) -> None:
        until = datetime.now(UTC) + timedelta(hours=1)
        held = update(tables.lease).where(tables.lease.c.bucket < 4)
        async with empty.connection() as connection:
            await connection.run_sync(migration._migrate, version)
            await connection.execute(held.values(owner="old", expires_at=until))
            await connection.execute(insert(tables.relay).values(owner="old", expires_at=until))
        assert await migration.upgrade(empty) is True
        async with empty.connection() as connection:
            assert await connection.run_sync(leases.extend, "old", 3600.0) == frozenset(range(4))
            buckets, ends_in = await connection.run_sync(leases.renew, "new", 3600.0)
            assert buckets == frozenset(range(4, 12))
            assert 3000 < ends_in <= 3600

    async def test_what_was_stored_and_handled_before_the_counters_is_counted_with_them(
        self, empty: Database
    ) -> None:
        headers = {"source": "/t", "type": "t.happened"}
        row = {"id": "m", "name": "t.happened", "bucket": 0, "headers": headers, "data": b""}
        async with empty.connection() as connection:
            await connection.run_sync(migration._migrate, "0008")
            await connection.execute(insert(tables.outbox), row)
            await connection.execute(insert(tables.inbox), OLDER)
        await migration.upgrade(empty)
        async with empty.reading() as connection:
            books = await counts.read_books(connection, NOW)
        assert books.number(Way("stored", "", "t", "t.happened")) == 1
        assert books.number(Way("handled", "s", "", "")) == 1
        assert books.outbox == {("t", "t.happened", "due"): 1}
        assert books.inbox == {"s": 1}

    async def test_a_database_of_a_newer_version_is_drift(self, database: Database) -> None:
        async with database.connection() as connection:
            await connection.execute(text("UPDATE eventmesh_alembic_version SET version_num='9'"))
        with pytest.raises(Drift, match="newer version"):
            await migration.upgrade(database)

    async def test_a_services_own_tables_are_created_if_missing_and_otherwise_left_unchanged(
        self, empty: Database
    ) -> None:
        own = MetaData()
        Table("accounts", own, Column("id", Integer, primary_key=True))
        await migration.upgrade(empty, own)
        wider = MetaData()
        Table("accounts", wider, Column("id", Integer, primary_key=True), Column("x", Integer))
        await migration.upgrade(empty, wider)
        async with empty.connection() as connection:
            columns = await connection.run_sync(lambda c: inspect(c).get_columns("accounts"))
        assert [column["name"] for column in columns] == ["id"]

    @pytest.mark.parametrize(
        "impossible",
        [
            "INSERT INTO eventmesh_outbox (id, name, bucket, headers, data)"
            " VALUES ('i', 'n', 99, '{}', '')",
            "UPDATE eventmesh_lease SET owner = 'me'",
            "INSERT INTO eventmesh_saga"
            " (name, id, version, status, state, steps, row_version, started_at, updated_at)"
            " VALUES ('i', 'n', 1, 'lost', '{}', '{}', 1, '2026-01-01', '2026-01-01')",
        ],
    )
    async def test_an_impossible_row_cannot_be_written(
        self, database: Database, impossible: str
    ) -> None:
        # MariaDB's driver does not count a failed check as an IntegrityError.
        with pytest.raises(DBAPIError, match=r"(?i)\bck_|check"):
            async with database.connection() as connection:
                await connection.execute(text(impossible))


class TestOutbox:
    async def test_messages_are_read_as_they_were_stored_and_in_order(
        self, database: Database
    ) -> None:
        sent = [message(number, key=f"k{number % 3}") for number in range(20)]
        await store(database, *sent)
        async with database.reading() as connection:
            rows = await connection.run_sync(outbox.due, ALL, NOW, 100)
        assert [row.envelope for row in rows] == [each.envelope for each in sent]

    async def test_no_more_than_the_limit_is_read(self, database: Database) -> None:
        await store(database, *map(message, range(10)))
        assert await due(database, limit=3) == ["m0", "m1", "m2"]

    async def test_only_rows_of_the_requested_buckets_are_read(self, database: Database) -> None:
        await store(database, message(1, key="a"), message(2, key="b"))
        async with database.reading() as connection:
            rows = await connection.run_sync(outbox.due, {bucket_of("b", "")}, NOW, 100)
        assert [row.envelope.id for row in rows] == ["m2"]

    async def test_a_delayed_message_waits_and_blocks_no_other(self, database: Database) -> None:
        await store(database, message(1, delay=60), message(2))
        assert await due(database) == ["m2"]
        assert await due(database, now=NOW + timedelta(seconds=59.9)) == ["m2"]
        assert await due(database, now=NOW + timedelta(seconds=60)) == ["m1", "m2"]

    async def test_a_message_is_stored_only_if_its_transaction_commits(
        self, database: Database
    ) -> None:
        async with unit_of_work(database) as unit:
            await units.store(await unit.session.connection(), [message(1)])
        assert await due(database) == []

    async def test_a_transaction_that_commits_late_is_not_skipped(self, postgres_url: str) -> None:
        """On PostgreSQL only: SQLite has one writer at a time, so nobody can commit late."""
        database = Database(postgres_url, service="shop")
        await migration.upgrade(database)
        async with database.connection() as late:
            await units.store(late, [message(1)])
            await store(database, message(2))
            assert await due(database) == ["m2"]
        assert await due(database) == ["m1", "m2"]
        await database.close()

    async def test_confirmed_rows_are_deleted(self, database: Database) -> None:
        await store(database, *map(message, range(3)))
        async with database.connection() as connection:
            rows = await connection.run_sync(outbox.due, ALL, NOW, 2)
            await outbox.delete_confirmed(connection, rows)
        assert await due(database) == ["m2"]

    async def test_a_rejected_row_blocks_its_key_until_it_is_published_and_no_other_key(
        self, database: Database
    ) -> None:
        await store(database, message(1, key="bad"), message(2, key="bad"), message(3, key="good"))
        await self.reject_first(database, NOW, again_at=NOW + timedelta(seconds=10))
        assert await due(database, now=NOW + timedelta(seconds=9)) == ["m3"]
        assert await due(database, now=NOW + timedelta(seconds=10)) == ["m1", "m3"]

    async def test_a_row_rejected_too_often_parks_its_key_and_no_other_key(
        self, database: Database
    ) -> None:
        await store(database, message(1, key="bad"), message(2, key="bad"), message(3, key="good"))
        for attempts in (0, 1):
            assert await self.reject_first(database, NOW, again_at=NOW) == attempts
        assert await due(database, now=NOW + timedelta(days=1)) == ["m3"]
        async with database.reading() as connection:
            assert (await outbox.stats(connection, NOW)).parked == 1

    async def test_counting_stops_at_a_limit_but_finds_every_parked_row(
        self, database: Database
    ) -> None:
        await store(database, message(1, key="bad"), *(message(n, key="good") for n in (2, 3, 4)))
        for _ in (0, 1):
            await self.reject_first(database, NOW, again_at=NOW)
        async with database.reading() as connection:
            whole = await outbox.stats(connection, NOW, most=4)
            part = await outbox.stats(connection, NOW, most=2)
        assert whole == outbox.OutboxStats(pending=3, delayed=0, parked=1)
        assert (part.pending <= 2, part.parked, part.is_partial) == (True, 1, True)

    async def reject_first(self, database: Database, now: datetime, *, again_at: datetime) -> int:
        """Reject the first row that is due; returns how often it had been rejected before."""
        async with database.connection() as connection:
            rows = await connection.run_sync(outbox.due, ALL, now, 100)
            await outbox.mark_rejected(
                connection, [Rejection(rows[0].seq, "no", again_at)], park_after=2
            )
        return rows[0].attempts


class TestCounts:
    WAY = Way("handled", "s", "t", "t.happened")

    async def test_counters_of_connections_are_summed_and_folded_when_idle(
        self, database: Database
    ) -> None:
        async with database.connection() as one, database.engine.connect() as two:
            await counts.add_now(one, {self.WAY: 2, Way("stored", "", "t", "x"): 1})
            await counts.add_now(one, {self.WAY: 3})
            assert counts.owner_of(one) != counts.owner_of(two)
        if database.dialect.name != "sqlite":  # which has one writer
            async with database.connection() as one, database.connection() as two:
                await counts.add_now(one, {self.WAY: 1})
                await counts.add_now(two, {self.WAY: 1})  # waits for nobody
            async with database.engine.connect() as one, database.connection() as folding:
                for is_committed in (True, False):
                    await counts.add_now(one, {self.WAY: 1})
                    if is_committed:
                        await one.commit()
                later = await database.time.ask(folding) + timedelta(hours=1)
                await folding.run_sync(counts.fold, later)  # nor does this, which leaves that one
                await one.commit()
        before = await self.sum(database)
        async with database.connection() as connection:
            assert await connection.run_sync(counts.fold, NOW) == 0  # long before
            later = await database.time.ask(connection) + timedelta(hours=1)
            assert await connection.run_sync(counts.fold, later) >= 1
            assert await connection.run_sync(counts.fold, later) == 0
            await counts.add_now(connection, {self.WAY: 1})
        assert await self.sum(database) == before + 1
        assert before in (5, 9)

    async def test_a_folded_counter_says_since_when_its_first_row_was_counted(
        self, database: Database
    ) -> None:
        """So that the audit knows which subscriptions were declared after the first message."""
        counted = tables.count
        begins = [NOW - timedelta(hours=hours) for hours in (2, 3, 1)]
        for last in range(1, len(begins) + 1):  # the first is folded into no row
            async with database.connection() as connection:
                await counts.add_now(connection, {self.WAY: 1})
                mine = counted.c.owner == counts.owner_of(connection)
                began = begins[last - 1]
                await connection.execute(
                    update(counted).where(mine).values(since=began, updated_at=began)
                )
                assert await connection.run_sync(counts.fold, NOW) == 1
            async with database.reading() as connection:
                (total,) = (await counts.read_books(connection, NOW)).totals
            assert (total.number, total.since) == (last, min(begins[:last]))

    async def sum(self, database: Database) -> int:
        async with database.reading() as connection:
            return (await counts.read_books(connection, NOW)).number(self.WAY)

    async def test_what_is_rolled_back_is_not_counted(self, database: Database) -> None:
        async with unit_of_work(database) as unit:
            unit.count({self.WAY: 1})
        async with unit_of_work(database) as unit:
            unit.count({self.WAY: 1})
            await unit.commit()
        assert await self.sum(database) == 1

    async def test_a_message_that_its_group_leaves_for_the_next_is_counted_once(
        self, database: Database
    ) -> None:
        """The time of each group is over after its first message."""
        clock = MovedClock()
        service = Service("t", clock=clock)
        url = database.url.render_as_string(hide_password=False)
        service.configure(Settings(database_urls={"t": url}, group_time=1.0))
        handled: list[Event] = []

        @service.subscriber(name="s")
        async def handle(event: Happened, tx: Transaction) -> None:
            clock.ahead += 2.0
            handled.append(event)

        [handler] = service.handlers.values()
        async with service:
            runner = BatchRunner(
                service, handler, SubscriptionVitals("t", handler.subscription, clock)
            )
            runner.size = 3
            envelopes = [seal(Happened(), source="t", clock=clock) for _ in range(3)]
            twice = [Delivery(each) for each in (*envelopes, envelopes[0])]
            assert len(await runner.run(twice)) == 4
        assert len(handled) == 3
        async with database.reading() as connection:
            books = await counts.read_books(connection, NOW)
        assert books.number(Way("handled", "t.s", "t", "t.happened")) == 3

    async def test_a_row_is_counted_when_it_is_stored_and_when_it_leaves_the_outbox(
        self, database: Database
    ) -> None:
        await store(database, *map(message, range(3)), message(3, delay=60))
        async with database.queue("reads") as connection:
            rows = await connection.run_sync(outbox.due, ALL, NOW, 2)
        for are_there in (True, False):  # the second time they are gone
            deleted = database.write_to_queue(lambda sync: outbox.delete_untried(sync, rows))
            assert await deleted is are_there
        async with database.reading() as connection:
            books = await counts.read_books(connection, NOW)
        stored, relayed = (
            books.number(Way(what, "", "t", "t.happened")) for what in ("stored", "relayed")
        )
        assert (stored, relayed) == (4, 2)
        assert books.outbox == {
            ("t", "t.happened", "due"): 1,
            ("t", "t.happened", "delayed"): 1,
        }

    async def test_the_first_declaration_counts(self, database: Database) -> None:
        for _ in range(2):
            async with database.connection() as connection:
                await connection.run_sync(counts.declare, [("s", "t.happened")])
            async with database.reading() as connection:
                [first] = (await counts.read_books(connection, NOW)).totals
            assert (first.way, first.number) == (Way("declared", "s", "", "t.happened"), 0)

    async def test_the_purge_of_the_inbox_counts_what_it_forgets(self, database: Database) -> None:
        async with unit_of_work(database) as unit:
            await claim(unit.session, "s", "a", "b")
            await unit.commit()
        async with database.connection() as connection:
            later = await database.time.ask(connection) + timedelta(hours=1)
            await purge.purge(connection, purge.RECEIVED, later, 100)
        async with database.reading() as connection:
            books = await counts.read_books(connection, NOW)
        assert (books.number(Way("forgotten", "s", "", "")), books.inbox) == (2, {})


class TestInbox:
    async def test_an_id_is_new_once_for_each_subscription(self, database: Database) -> None:
        async with unit_of_work(database) as unit:
            assert await claim(unit.session, "s", "a", "b", "a") == {"a", "b"}
            await unit.commit()
        async with unit_of_work(database) as unit:
            assert await claim(unit.session, "s", "b", "c") == {"c"}
            assert await claim(unit.session, "other", "b") == {"b"}

    async def test_the_row_of_a_message_is_its_entry_in_the_journal(
        self, database: Database
    ) -> None:
        hostile = "\0\ud800<b>\x1b[2J" + "ü" * 300
        attributes = {
            "id": "m",
            "source": "/t",
            "type": "t.happened",
            "partitionkey": hostile,
            "correlationid": hostile,
            "causationid": "c",
        }
        entries = [
            Entry.of(Envelope(attributes, b"{}"), 3),
            Entry("slow", 1, "t.happened", "k", "slow", None, 1),
        ]
        async with unit_of_work(database) as unit:
            await inbox.claim(unit.session, "s", entries)
            await inbox.note_slow(unit.session, "s", {"slow": 1.25})
            await unit.commit()
        journal = [tables.inbox.c[field] for field in Entry._fields]
        async with database.reading() as connection:
            rows = await connection.execute(select(*journal, tables.inbox.c.took))
        first, slow = sorted(rows, key=lambda row: row.took or 0)
        assert first[:-1] == entries[0]
        assert first.key == "\\x00\\ud800<b>\x1b[2J" + "ü" * 117 + "…"
        assert (slow[:-1], slow.took) == (entries[1], 1.25)

    async def test_an_id_that_was_used_for_another_message_is_detected(
        self, database: Database
    ) -> None:
        async with unit_of_work(database) as unit:
            claim = await inbox.claim(unit.session, "s", [Entry("a", 1), Entry("b", -2)])
            assert not claim.is_other("a", 1)
            await unit.commit()
        async with unit_of_work(database) as unit:
            await unit.session.execute(insert(tables.inbox), OLDER)
            again = [Entry("a", 2), Entry("b", -2), Entry("older", 3), Entry("new", 4)]
            claim = await inbox.claim(unit.session, "s", again)
            assert claim.fresh == {"new"}
            assert claim.is_other("a", 2)
            assert not any(
                claim.is_other(known, digest)
                for known, digest in (("b", -2), ("older", 3), ("new", 4))
            )

    async def test_a_rolled_back_claim_leaves_the_id_new(self, database: Database) -> None:
        for _ in range(2):
            async with unit_of_work(database) as unit:
                assert await claim(unit.session, "s", "a") == {"a"}

    @pytest.mark.parametrize("savepoint", [False, True], ids=["whole", "savepoint"])
    async def test_a_commit_after_a_caught_error_succeeds_or_raises(
        self, database: Database, savepoint: bool
    ) -> None:
        """Some databases roll all back at an error, and PostgreSQL then takes a COMMIT for it."""
        commits = savepoint or database.dialect.name != "postgresql"
        async with unit_of_work(database) as unit:
            await claim(unit.session, "s", "a")
            with suppress(DBAPIError), unit.transaction() as tx:
                async with tx.session.begin_nested() if savepoint else nullcontext():
                    await tx.session.execute(text("SELECT 1 FROM no_such_table"))
            with nullcontext() if commits else pytest.raises(DBAPIError, match="rolled back"):
                await unit.commit()
        async with database.reading() as connection:
            assert (await inbox.remembered(connection, "s", ["a"]) == {"a"}) is commits

    async def test_an_unclaimed_id_is_new_again(self, database: Database) -> None:
        async with unit_of_work(database) as unit:
            await claim(unit.session, "s", "a", "b")
            await inbox.unclaim(unit.session, "s", ["b"])
            await unit.commit()
        async with unit_of_work(database) as unit:
            assert await claim(unit.session, "s", "a", "b") == {"b"}

    async def test_of_two_workers_with_one_message_the_second_waits_and_finds_a_duplicate(
        self, database: Database
    ) -> None:
        async def handle(release: asyncio.Event) -> set[str]:
            async with unit_of_work(database) as unit:
                fresh = await claim(unit.session, "s", "a", "b")
                await release.wait()
                await unit.commit()
            return fresh

        release = asyncio.Event()
        both = [asyncio.ensure_future(handle(release)) for _ in range(2)]
        await asyncio.wait(both, timeout=0.3)
        release.set()
        assert sorted(map(len, await asyncio.gather(*both))) == [0, 2]


class TestLeases:
    async def renew(self, database: Database, owner: str, time: float = 60) -> frozenset[int]:
        async with database.connection() as connection:
            buckets, _ = await connection.run_sync(leases.renew, owner, time)
            return buckets

    async def test_a_single_relay_holds_all_buckets(self, database: Database) -> None:
        assert await self.renew(database, "one") == frozenset(ALL)

    async def test_a_new_relay_gets_its_share_when_the_old_one_renews(
        self, database: Database
    ) -> None:
        await self.renew(database, "one")
        assert await self.renew(database, "two") == frozenset()
        first = await self.renew(database, "one")
        second = await self.renew(database, "two")
        assert len(first) == len(second) == tables.BUCKETS // 2
        assert first | second == frozenset(ALL)

    async def test_the_buckets_of_a_dead_relay_are_taken_over_when_its_leases_expire(
        self, database: Database
    ) -> None:
        await self.renew(database, "dead", time=0.2)
        async with asyncio.timeout(60):
            while not await self.renew(database, "heir"):  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.02)
        assert await self.renew(database, "heir") == frozenset(ALL)

    async def test_the_databases_clock_is_in_utc_and_close_to_the_machines(
        self, database: Database
    ) -> None:
        most = timedelta(seconds=5)
        async with database.reading() as connection:
            earliest = datetime.now(UTC) - most
            now = await connection.scalar(select(database_now()))
            assert now is not None
            assert earliest < now < datetime.now(UTC) + most


class TestSagas:
    def row(self, row_version: int, status: str = "running") -> SagaRow:
        return SagaRow("s1", "shop.sell", 1, status, {"a": 1}, {}, None, row_version)

    async def test_a_saga_is_read_as_it_was_written(self, database: Database) -> None:
        async with unit_of_work(database) as unit:
            await sagas.store(unit.session, "shop.sell", [self.row(1)])
            await sagas.store(unit.session, "shop.sell", [self.row(2)])
            await unit.commit()
            assert await sagas.load(unit.session, "shop.sell", "s1") == self.row(2)
            assert await sagas.load(unit.session, "shop.sell", "none") is None

    async def test_a_saga_is_found_by_the_beginning_of_its_id(self, database: Database) -> None:
        hashed = f"sha256:{'a1' * 32}"
        ids = [
            "01998a31-0000-7000-8000-000000000000",
            "01998a31-ffff-7fff-bfff-ffffffffffff",
            "01998a32-0000-7000-8000-000000000000",
            hashed,
        ]
        other = replace(self.row(1), name="shop_eu.rent", id=ids[0])
        async with unit_of_work(database) as unit:
            rows = [replace(self.row(1), id=each) for each in ids]
            await sagas.store(unit.session, "shop.sell", rows)
            await sagas.store(unit.session, "shop_eu.rent", [other])
            await unit.commit()

        async def found(beginning: str, service: str = "shop") -> set[tuple[str, str]]:
            async with database.reading() as connection:
                rows = await sagas.find_by_id(connection, service, beginning)
            return {(row.name, row.id) for row in rows}

        for beginning in ("01998a31-0", "01998A31-0000-7", ids[0]):
            assert await found(beginning) == {("shop.sell", ids[0])}
        assert await found("01998a31-f") == {("shop.sell", ids[1])}
        assert await found("01998a32") == {("shop.sell", ids[2])}
        for beginning in ("s", "sha256:a", hashed):
            assert await found(beginning) == {("shop.sell", hashed)}
        assert await found("01998a31") == {("shop.sell", ids[0]), ("shop.sell", ids[1])}
        assert await found("01998a31-0", "shop_eu") == {("shop_eu.rent", ids[0])}
        assert await found("01998a31-0", "shop.eu") == set()
        assert len(await found("")) == 2  # the most
        for beginning in ("01998a33", "0199_", "%", "01998a310", f"{ids[0]}0", "sha256:g", "\0"):
            assert await found(beginning) == set()

    async def test_a_group_locks_the_sagas_of_its_ids_and_the_open_or_newest_ones_of_its_keys(
        self, database: Database
    ) -> None:
        rows = [
            self.row(1),
            replace(self.row(1, "completed"), id="s9", key="k2"),
            replace(self.row(1, "completed"), id="s2", key="k2"),  # started last
            replace(self.row(1, "completed"), id="s3", key="k3"),
            replace(self.row(1), id="s1k3", key="k3"),
        ]
        for row in rows:
            async with unit_of_work(database) as unit:
                await sagas.store(unit.session, "shop.sell", [row])
                await unit.commit()
        async with unit_of_work(database) as unit:
            wanted = {"s1", "none"}, {"k2", "k3", "k4"}
            locked = await sagas.lock(unit.session, "shop.sell", *wanted)
            assert [row.id for row in locked] == ["s1", "s1k3", "s2"]
            assert await sagas.holders_of(unit.session, "shop.sell", {"k2", "k3"}) == {"k3": "s1k3"}
        async with database.reading() as connection:
            assert await connection.run_sync(sagas.keyless, "shop.sell") == ["s1"]

    async def test_two_open_sagas_cannot_have_one_key(self, database: Database) -> None:
        first = replace(self.row(1), key="k")
        async with unit_of_work(database) as unit:
            await sagas.store(unit.session, "shop.sell", [first])
            await unit.commit()
        with pytest.raises(sagas.KeyTaken):
            async with unit_of_work(database) as unit:
                await sagas.store(unit.session, "shop.sell", [replace(first, id="s2")])
        async with unit_of_work(database) as unit:
            await sagas.store(
                unit.session, "shop.sell", [replace(first, row_version=2, status="completed")]
            )
            await sagas.store(unit.session, "shop.sell", [replace(first, id="s2")])
            await unit.commit()

    async def test_a_cancelled_time_out_is_gone_and_other_messages_stay(
        self, database: Database
    ) -> None:
        """On MariaDB it stays, and its saga finds it stale when it is due."""
        now, later = message(1).envelope.id, message(2).envelope.id
        await store(database, message(1), Outgoing(message(2).envelope, delay=60.0))
        async with unit_of_work(database) as unit:
            await sagas.store(unit.session, "shop.sell", cancelled={now, later})
            await unit.commit()
        async with database.reading() as connection:
            left = list(await connection.scalars(select(tables.outbox.c.id)))
        assert left == ([now, later] if database.dialect is MARIADB else [now])

    async def test_a_withdrawn_command_is_gone_from_every_database(
        self, database: Database
    ) -> None:
        now, later, other = (message(number) for number in (1, 2, 3))
        await store(database, now, *(replace(each, delay=60.0) for each in (later, other)))
        async with unit_of_work(database) as unit:
            withdrawn = {now.envelope.id, later.envelope.id}
            await sagas.store(unit.session, "shop.sell", withdrawn=withdrawn)
            await unit.commit()
        async with database.reading() as connection:
            left = list(await connection.scalars(select(tables.outbox.c.id)))
        assert left == [now.envelope.id, other.envelope.id]

    async def test_the_log_of_a_saga_is_read_in_its_order(self, database: Database) -> None:
        entries = [sagas.LogEntry("s1", {"rule": rule}) for rule in ("started", "applied")]
        other = sagas.LogEntry("s2", {"rule": "started"})
        async with unit_of_work(database) as unit:
            await sagas.store(unit.session, "shop.sell", log=[entries[0], other, entries[1]])
            await unit.commit()
        async with database.reading() as connection:
            log = await sagas.log_of(connection, "shop.sell", "s1")
        assert [entry for _, entry in log] == [{"rule": "started"}, {"rule": "applied"}]

    async def test_open_sagas_are_counted_by_what_they_wait_for(self, database: Database) -> None:
        late = datetime.now(UTC) - timedelta(hours=1)
        rows = [
            replace(self.row(1), id="a", waiting_for="reserve", due_at=late),
            replace(self.row(1), id="b", waiting_for="reserve"),
            replace(self.row(1), id="c", waiting_for="capture,reserve"),
            replace(self.row(1, "completed"), id="d"),
        ]
        async with unit_of_work(database) as unit:
            await sagas.store(unit.session, "shop.sell", rows)
            await unit.commit()
        async with database.reading() as connection:
            lots = await sagas.census(connection)
            found = await sagas.find(connection, statuses=["running"], step="reserve")
        assert [(lot.waiting_for, lot.count, lot.overdue) for lot in lots] == [
            ("capture,reserve", 1, 0),
            ("reserve", 2, 1),
        ]
        assert {row.id for row in found} == {"a", "b", "c"}


class TestErrors:
    async def test_a_database_that_does_not_answer_is_unreachable(self) -> None:
        closed = Database("postgresql://u:secret@127.0.0.1:1/x", service="shop")
        with pytest.raises(Unreachable, match="EVENTMESH_SHOP_DATABASE_URL") as caught:
            await closed.connect()
        assert "secret" not in str(caught.value)

    def test_an_unsupported_database_url_is_a_usage_error(self) -> None:
        with pytest.raises(UsageError, match="mysql"):
            Database("mysql://h/x", service="shop")
        with pytest.raises(UsageError, match="not a database URL"):
            Database("nonsense", service="shop")

    async def test_an_error_of_a_statement_does_not_make_the_database_unreachable(
        self, database: Database
    ) -> None:
        async with database.connection() as connection:
            await connection.execute(insert(tables.relay).values(owner="x", expires_at=NOW))
        with pytest.raises(IntegrityError):
            async with database.connection() as connection:
                await connection.execute(insert(tables.relay).values(owner="x", expires_at=NOW))

    async def test_concurrent_read_modify_write_transactions_lose_no_update(
        self, database: Database
    ) -> None:
        """On SQLite BEGIN IMMEDIATE ensures it: the second transaction waits instead of failing."""

        counter = tables.start.c.starts

        async def count_up() -> None:
            async with database.connection() as connection:
                await connection.scalar(select(counter))
                await connection.execute(update(tables.start).values(starts=counter + 1))

        row = {"subscription": "s", "message_id": "m", "starts": 1, "begun_at": NOW}
        async with database.connection() as connection:
            await connection.execute(insert(tables.start).values(row))
        await asyncio.gather(*(count_up() for _ in range(20)))
        async with database.reading() as connection:
            assert await connection.scalar(select(counter)) == 21


async def test_a_silent_postgresql_is_detected_by_keepalive_and_user_timeout(
    postgres_url: str,
) -> None:
    database = Database(postgres_url, service="shop")
    try:
        async with database.reading() as connection:
            raw = await connection.get_raw_connection()
            end = raw.driver_connection._transport.get_extra_info("socket")
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE * 1000
            idle, interval, count = (
                end.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + interval * count == SILENCE
    finally:
        await database.close()


async def test_a_connection_that_no_longer_answers_is_closed_and_replaced(
    postgres_url: str,
) -> None:
    async with proxy_before(postgres_url) as proxy:
        database = Database(proxy.url, service="shop")
        try:
            async with database.connection() as connection:
                assert await connection.scalar(select(1)) == 1
            proxy.forget()
            with pytest.raises(Unreachable, match="it took too long"):
                async with database.connection(within=0.5) as connection:
                    await connection.scalar(select(1))
            async with database.connection(within=60.0) as connection:  # on another connection
                assert await connection.scalar(select(1)) == 1
        finally:
            await database.close()
