"""The promises also hold where MariaDB behaves differently from PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from eventmesh import Event, Service, Settings, Transaction
from eventmesh.errors import Conflict, Unreachable, UsageError
from eventmesh.persistence import inbox, migration, outbox, sagas, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.dialects.tcp import SILENCE
from eventmesh.persistence.outbox import Outgoing, Rejection
from eventmesh.persistence.sagas import SagaRow
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.base import PublishResult
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import Envelope
from tests.integration.test_worker import (
    SOON,
    Base,
    Do,
    Done,
    Effect,
    Mesh,
    MovableClock,
    effects,
    prepare,
    until,
)
from tests.support import units
from tests.support.units import unit_of_work

if TYPE_CHECKING:
    from eventmesh.testing.servers import Server
    from tests.integration.conftest import Project

ALL = range(tables.BUCKETS)
NOW = datetime(2026, 1, 1, 12, 30, 45, 123456, tzinfo=UTC)

Sessions = async_sessionmaker[AsyncSession]


class Bill(Event, name="bills.bill", version=1):
    number: int


@pytest.fixture
async def mesh(migrated_mariadb_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A service on MariaDB, whose handlers the test declares."""
    settings = Settings(
        database_urls={"shop": migrated_mariadb_url}, schemas=tmp_path / "schemas", lease_time=1.0
    )
    service, clock = Service("shop", metadata=Base.metadata), MovableClock()
    await prepare(service, settings)
    yield Mesh(service, settings, MemoryTransport(clock), clock)
    await service.close()


@pytest.fixture
async def database(mesh: Mesh) -> Database:
    """The service's database, with all its tables."""
    return await mesh.service.database()


class TestHandlers:
    async def test_a_deadlock_that_a_handler_catches_loses_no_effect_of_its_group(
        self, mesh: Mesh, database: Database
    ) -> None:
        """At a deadlock the server rolls back the whole transaction, and later statements begin
        another."""
        deadlocks: list[int] = []

        @mesh.service.subscriber(Do, retry=SOON)
        async def do(command: Do, tx: Transaction) -> Done:
            tx.session.add(Effect(number=command.number))
            await tx.session.flush()
            if command.number == 5 and not deadlocks:
                async with rival_of(database, tx) as deadlock:
                    with suppress(DBAPIError):
                        await deadlock()
                    deadlocks.append(command.number)
            return Done(number=command.number)

        await create_spots(database)
        async with mesh.worker():
            await mesh.send(*range(12))
            await until(effects(mesh, 12))
            await until(mesh.outbox_is_empty)
        assert deadlocks == [5]
        assert sorted(await mesh.effects()) == list(range(12))
        assert await mesh.dead("shop.do") == []

    async def test_a_deadlock_that_a_handler_does_not_catch_is_retried(
        self, mesh: Mesh, database: Database
    ) -> None:
        deadlocks: list[int] = []

        @mesh.service.subscriber(Do, retry=SOON)
        async def do(command: Do, tx: Transaction) -> Done:
            tx.session.add(Effect(number=command.number))
            await tx.session.flush()
            if command.number == 5 and not deadlocks:
                deadlocks.append(command.number)
                async with rival_of(database, tx) as deadlock:
                    await deadlock()
            return Done(number=command.number)

        await create_spots(database)
        async with mesh.worker():
            await mesh.send(*range(12))
            await until(effects(mesh, 12))
            await until(mesh.outbox_is_empty)
        assert sorted(await mesh.effects()) == list(range(12))

    async def test_a_deadlock_in_a_savepoint_rolls_back_the_whole_transaction(
        self, mesh: Mesh, database: Database
    ) -> None:
        await create_spots(database)
        async with database.unit_of_work(mesh.service.sender()) as unit:
            with unit.transaction() as tx:
                tx.session.add(Effect(number=1))
                with suppress(DBAPIError):
                    async with tx.session.begin_nested(), rival_of(database, tx) as deadlock:
                        await deadlock()
            with pytest.raises((Conflict, DBAPIError)):
                await unit.commit()
        assert await mesh.effects() == []

    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE other (id INT)",
            "/* a comment */ truncate table effects",
            "-- a comment\nALTER TABLE effects ADD COLUMN other INT",
            "START TRANSACTION",
            "COMMIT",
            "ROLLBACK",
            "SET autocommit = 1",
            "LOCK TABLES effects WRITE",
        ],
    )
    async def test_a_statement_with_an_implicit_commit_is_an_error_in_a_handler(
        self, mesh: Mesh, statement: str
    ) -> None:
        @mesh.service.subscriber(Do)
        async def do(command: Do, tx: Transaction) -> Done:
            tx.session.add(Effect(number=command.number))
            await tx.session.flush()
            if command.number == 3:
                await tx.session.execute(text(statement))
            return Done(number=command.number)

        async with mesh.worker():
            await mesh.send(*range(6))
            await until(effects(mesh, 5))
            await until(mesh.outbox_is_empty)
        [letter] = await mesh.dead("shop.do")
        assert "Do that outside handlers" in letter.reason
        assert await mesh.effects() == [0, 1, 2, 4, 5]

    async def test_a_procedure_that_commits_is_detected(
        self, mesh: Mesh, database: Database
    ) -> None:
        """It is too late to keep the transaction whole, but no success is reported."""
        async with database.connection() as connection:
            await connection.execute(text("CREATE PROCEDURE sly() COMMIT"))
        async with unit_of_work(database) as unit:
            await unit.session.execute(text("CALL sly()"))
            with pytest.raises(Conflict, match="commits"):
                await unit.commit()

    async def test_statements_without_an_implicit_commit_are_allowed(
        self, database: Database
    ) -> None:
        async with unit_of_work(database) as unit:
            await unit.session.execute(text("CREATE TEMPORARY TABLE some (id INT)"))
            async with unit.session.begin_nested():
                await unit.session.execute(text("INSERT INTO some VALUES (1)"))
            await unit.session.execute(text("DROP TEMPORARY TABLE some"))
            await unit.commit()

    async def test_a_connection_killed_while_a_handler_runs_costs_no_attempt(
        self, mesh: Mesh, database: Database
    ) -> None:
        killed: list[int] = []

        @mesh.service.subscriber(Do, retry=SOON)
        async def do(command: Do, tx: Transaction) -> Done:
            tx.session.add(Effect(number=command.number))
            await tx.session.flush()
            if not killed:
                killed.append(command.number)
                mine = await tx.session.scalar(text("SELECT CONNECTION_ID()"))
                async with database.connection() as other:
                    await other.execute(text(f"KILL {mine:d}"))
            await tx.session.execute(text("SELECT 1"))
            return Done(number=command.number)

        async with mesh.worker():
            await mesh.send(*range(10))
            await until(effects(mesh, 10))
            await until(mesh.outbox_is_empty)
        assert await mesh.effects() == list(range(10))
        assert await mesh.dead("shop.do") == []

    async def test_a_statement_that_is_too_large_for_the_server_fails_only_its_message(
        self, mesh: Mesh, database: Database
    ) -> None:
        """The server would close the connection, which looks like a lost one."""
        async with database.reading() as connection:
            limit = await connection.scalar(text("SELECT @@max_allowed_packet"))

        @mesh.service.subscriber(Do, retry=SOON)
        async def do(command: Do, tx: Transaction) -> None:
            tx.session.add(Effect(number=command.number))
            if command.number == 2:
                await tx.session.execute(text("SELECT LENGTH(:x)"), {"x": "x" * limit})

        async def one_dead() -> bool:
            return len(await mesh.dead("shop.do")) == 1

        async with mesh.worker():
            await mesh.send(*range(5))
            await until(effects(mesh, 4))
            await until(one_dead)
        assert sorted(await mesh.effects()) == [0, 1, 3, 4]

    async def test_an_update_reads_the_old_values_of_its_row_as_in_standard_sql(
        self, database: Database
    ) -> None:
        async with unit_of_work(database) as unit:
            unit.session.add(Effect(id=1, number=10))
            await unit.session.flush()
            await unit.session.execute(text("UPDATE effects SET id = id + 1, number = id"))
            row = await unit.session.execute(text("SELECT id, number FROM effects"))
            assert row.one() == (2, 1)


async def claim(session: AsyncSession, *ids: str) -> set[str]:
    """Claim these ids; returns those that were not in the inbox before."""
    return (await inbox.claim(session, "s", [inbox.Entry(each, 1) for each in ids])).fresh


class TestInbox:
    async def test_ids_are_compared_byte_by_byte(self, database: Database) -> None:
        ids = ["a", "A", "a ", "ä", "a\u0308", "a\0", "ß", "ss", "😀", "😁"]
        async with unit_of_work(database) as unit:
            assert await claim(unit.session, *ids) == set(ids)
            assert await claim(unit.session, *ids) == set()

    async def test_of_three_workers_with_one_message_the_failing_one_costs_the_others_no_attempt(
        self, database: Database
    ) -> None:
        """The two that waited may deadlock on its rolled back rows; then they retry."""

        async def handle() -> set[str]:
            while True:
                with suppress(Unreachable):
                    async with unit_of_work(database) as unit:
                        with database.own_statements():
                            fresh = await claim(unit.session, "a", "b")
                        await unit.commit()
                    return fresh

        async with unit_of_work(database) as first:
            await claim(first.session, "a", "b")
            others = [asyncio.ensure_future(handle()) for _ in range(2)]
            await waiting_for_locks(database, 2)
        assert sorted(map(len, await asyncio.gather(*others))) == [0, 2]

    async def test_a_lock_wait_timeout_is_not_blamed_on_the_message(
        self, database: Database
    ) -> None:
        async with unit_of_work(database) as first, unit_of_work(database) as second:
            await claim(first.session, "a")
            await second.session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
            with pytest.raises(Unreachable, match="Lock wait timeout"), database.own_statements():
                await claim(second.session, "a")
            # The connection still has the short timeout.
            await (await second.session.connection()).invalidate()


class TestOutbox:
    async def test_large_and_deeply_nested_values_are_read_exactly_as_they_were_stored(
        self, database: Database
    ) -> None:
        state: dict[str, Any] = {}
        for _ in range(100):
            state = {"deeper": state}
        state["number"] = 2**70
        data = bytes(range(256)) * 4096
        attributes = {"id": "m", "source": "/t", "type": "t.happened", "subject": "'\\\0😀\u2028"}
        row = SagaRow("s", "shop.sell", 1, "running", state, {}, "x" * 100_000, 1)
        async with unit_of_work(database) as unit:
            sent = [Outgoing(Envelope(attributes, data), 0.5)]
            await units.store(await unit.session.connection(), sent, now=NOW)
            await sagas.store(unit.session, "shop.sell", [row])
            await unit.commit()
            assert await sagas.load(unit.session, "shop.sell", "s") == row
        later = NOW.replace(microsecond=623456)
        async with database.connection() as connection:
            before = later.replace(microsecond=623455)
            assert await connection.run_sync(outbox.due, ALL, before, 9) == []
            [stored] = await connection.run_sync(outbox.due, ALL, later, 9)
            assert stored.envelope == Envelope(attributes, data)
            await outbox.mark_rejected(
                connection, [Rejection(stored.seq, "no" * 100_000, later)], park_after=5
            )
            assert await outbox.oldest(connection, later) == later

    async def test_a_transaction_that_commits_late_is_not_skipped(self, database: Database) -> None:
        def message(number: int) -> Outgoing:
            attributes = {"id": f"m{number}", "source": "/t", "type": "t.happened"}
            return Outgoing(Envelope(attributes, b""))

        async def due() -> list[str]:
            async with database.reading() as connection:
                rows = await connection.run_sync(outbox.due, ALL, NOW, 9)
            return [row.envelope.id for row in rows]

        async with database.connection() as late:
            await units.store(late, [message(1)])
            async with database.connection() as early:
                await units.store(early, [message(2)])
            assert await due() == ["m2"]
        assert await due() == ["m1", "m2"]

    async def test_a_round_reads_only_about_as_many_rows_as_it_relays(
        self, database: Database
    ) -> None:
        async with database.connection() as connection:
            await connection.execute(
                text(
                    "INSERT INTO eventmesh_outbox (id, name, `key`, bucket, headers, data)"
                    " SELECT seq, 'n', seq % 100, seq % 16, '{}', '' FROM seq_1_to_50000"
                )
            )
        async with database.reading() as connection:
            before = await rows_read(connection)
            assert len(await connection.run_sync(outbox.due, ALL, NOW, 500)) == 500
            assert await rows_read(connection) - before < 5_000


class TestRelay:
    async def test_another_relay_takes_over_the_outbox_of_a_disconnected_one_in_order(
        self, mesh: Mesh, database: Database
    ) -> None:
        """It fails between the broker's confirmation and its own deletion, so some messages are
        duplicated."""
        broker = RecordingBroker(mesh.clock)
        cut_off = Relay("shop", database, broker, mesh.clock, lease_time=1.0)
        mesh.service.publisher(Done)
        async with mesh.service.transaction() as tx:
            for number in range(1_000):
                tx.publish(Done(number=number, key=f"k{number % 7}"))
        with failing(database, "DELETE FROM eventmesh_outbox"), pytest.raises(Unreachable):
            await cut_off.round()
        published = len(broker.published)
        heir = Relay("shop", database, broker, mesh.clock, lease_time=1.0)
        stop = asyncio.Event()
        running = asyncio.ensure_future(heir.run(stop))
        await until(mesh.outbox_is_empty)
        stop.set()
        await running
        for key in (f"k{number}" for number in range(7)):
            once = [e.data for e in broker.published[published:] if e.key == key]
            assert once == [b'{"number":%d,"key":"%b"}' % (n, key.encode()) for n in of_key(key)]


class TestJoin:
    """What is specific to MariaDB; tests/integration/test_join.py has what holds on every
    database."""

    @pytest.fixture
    async def sessions(
        self, mesh: Mesh, migrated_mariadb_url: str, database: Database
    ) -> AsyncIterator[Sessions]:
        """The sessions of an application, with the URL that is usual for MySQL and MariaDB."""
        await create_spots(database)
        mesh.service.publisher(Done)
        url = make_url(migrated_mariadb_url).set(drivername="mysql+asyncmy")
        engine = create_async_engine(url)
        yield async_sessionmaker(engine)
        await engine.dispose()

    async def committed(self, database: Database) -> tuple[list[int], list[int]]:
        """The numbers of the committed effects and messages."""
        async with database.reading() as connection:
            numbers = await connection.scalars(select(Effect.number).order_by(Effect.id))
            rows = await connection.scalars(
                select(tables.outbox.c.data).order_by(tables.outbox.c.seq)
            )
            return list(numbers), [json.loads(data)["number"] for data in rows]

    @pytest.mark.parametrize("left_open", [False, True])
    @pytest.mark.parametrize("joined_late", [False, True])
    async def test_a_deadlock_that_the_application_catches_is_detected_at_its_commit(
        self,
        mesh: Mesh,
        database: Database,
        sessions: Sessions,
        joined_late: bool,
        left_open: bool,
    ) -> None:
        """Otherwise the work after the deadlock would be committed: half the state and all
        messages."""
        async with sessions() as session:
            if joined_late:
                await session.execute(select(Effect))
            tx = mesh.service.join(session)
            tx.publish(Done(number=1))
            session.add(Effect(number=1))
            await session.flush()
            async with rival_of(database, tx) as deadlock:
                with suppress(DBAPIError):
                    await deadlock()
            if left_open:  # a savepoint of the new transaction
                await session.begin_nested()
            session.add(Effect(number=2))
            tx.publish(Done(number=2))
            with pytest.raises(Conflict, match="deadlock"):
                await session.commit()
            await session.rollback()
            assert await self.committed(database) == ([], [])
            session.add(Effect(number=3))
            mesh.service.join(session).publish(Done(number=3))
            await session.commit()
        assert await self.committed(database) == ([3], [3])

    async def test_after_a_deadlock_in_a_savepoint_the_transaction_cannot_commit(
        self, mesh: Mesh, database: Database, sessions: Sessions
    ) -> None:
        async with sessions() as session:
            tx = mesh.service.join(session)
            session.add(Effect(number=1))
            tx.publish(Done(number=1))
            with suppress(DBAPIError):
                async with session.begin_nested(), rival_of(database, tx) as deadlock:
                    await deadlock()
            with pytest.raises((Conflict, DBAPIError, InvalidRequestError)):
                await session.commit()
            await session.rollback()
        assert await self.committed(database) == ([], [])

    async def test_a_lock_wait_timeout_rolls_back_only_its_statement(
        self, mesh: Mesh, database: Database, sessions: Sessions
    ) -> None:
        async with sessions() as session, database.engine.connect() as rival:
            tx = mesh.service.join(session)
            await session.execute(text("SET SESSION innodb_lock_wait_timeout = 1"))
            session.add(Effect(number=1))
            tx.publish(Done(number=1))
            await session.flush()
            await rival.execute(text("UPDATE spots SET n = 1"))
            with pytest.raises(DBAPIError, match="Lock wait timeout"):
                await session.execute(text("UPDATE spots SET n = 2"))
            await rival.rollback()
            await session.commit()
        assert await self.committed(database) == ([1], [1])

    async def test_a_procedure_that_commits_is_detected(
        self, mesh: Mesh, database: Database, sessions: Sessions
    ) -> None:
        async with database.connection() as connection:
            await connection.execute(text("CREATE PROCEDURE sly() COMMIT"))
        async with sessions() as session:
            mesh.service.join(session).publish(Done(number=1))
            await session.execute(text("CALL sly()"))
            with pytest.raises(Conflict, match="procedure that commits"):
                await session.commit()
        async with sessions() as session:
            mesh.service.join(session)  # without messages it is not checked
            await session.execute(text("CALL sly()"))
            await session.commit()
        assert await self.committed(database) == ([], [])

    async def test_several_services_and_savepoints_in_one_session_are_not_a_conflict(
        self, mesh: Mesh, migrated_mariadb_url: str, database: Database, sessions: Sessions
    ) -> None:
        other = Service("bills")
        other.configure(Settings(database_urls={"bills": migrated_mariadb_url}))
        other.publisher(Bill)
        async with sessions() as session:
            for number in range(2):
                async with session.begin():
                    await session.execute(select(Effect))
                    early = await session.begin_nested()
                    tx = mesh.service.join(session)
                    await session.execute(select(Effect))
                    await early.rollback()
                    await session.begin_nested()
                    tx.publish(Done(number=number))
                    async with session.begin_nested():
                        other.join(session).publish(Bill(number=number))
                        session.add(Effect(number=number))
                    failing = await session.begin_nested()
                    tx.publish(Done(number=99))
                    await session.execute(select(Effect))
                    await failing.rollback()
                    await session.execute(select(Effect))
        assert await self.committed(database) == ([0, 1], [0, 0, 1, 1])


class TestMigration:
    @pytest.mark.parametrize("step", [2, pytest.param(1, marks=pytest.mark.soak)])
    async def test_a_migration_that_was_interrupted_anywhere_can_be_completed(
        self, mariadb_server: Server, mariadb_url: str, step: int
    ) -> None:
        """MariaDB commits each statement of a migration by itself. It is interrupted after every
        second one, and in the soak after each."""
        statements = 0
        while await self.is_interrupted(mariadb_url, after=statements):
            statements += step
            database = Database(mariadb_url, service="shop")
            assert await migration.upgrade(database) is True
            async with database.connection() as connection:
                count = select(func.count()).select_from(tables.lease)
                assert await connection.scalar(count) == tables.BUCKETS
                name = database.url.database
                await connection.execute(text(f"DROP DATABASE {name}"))
                await connection.execute(text(f"CREATE DATABASE {name}"))
            await database.close()
        assert statements > 9, statements

    async def is_interrupted(self, url: str, after: int) -> bool:
        """Lose the connection after this many statements of a migration; returns whether it had
        more."""
        database = Database(url, service="shop")
        try:
            with failing(database, "CREATE |INSERT |DROP |UPDATE ", after):
                await migration.upgrade(database)
        except Unreachable:
            return True
        finally:
            await database.close()
        return False

    async def test_a_missing_database_is_created_on_request(self, mariadb_url: str) -> None:
        database = Database(f"{mariadb_url}_new", service="shop")
        try:
            with pytest.raises(Unreachable, match="eventmesh db upgrade --create shop"):
                await database.connect()
            for _ in range(2):
                await migration.create_database(database)
            await database.connect()
            async with database.connection() as connection:
                await connection.execute(text(f"DROP DATABASE {database.url.database}"))
        finally:
            await database.close()


class TestConnections:
    async def test_the_answer_to_a_cancelled_statement_never_reaches_another_statement(
        self, database: Database
    ) -> None:
        async def ask(question: int) -> None:
            async with database.engine.connect() as connection:
                for _ in range(3):
                    pause = text("SELECT :question, SLEEP(0.002)")
                    answer = await connection.execute(pause, {"question": question})
                    assert answer.one()[0] == question

        for number in range(300):
            asking = [asyncio.ensure_future(ask(number * 10 + each)) for each in range(3)]
            await asyncio.sleep(number * 0.00005)
            asking[0].cancel()
            _, *others = await asyncio.gather(*asking, return_exceptions=True)
            assert others == [None, None]

    async def test_a_silent_server_is_detected_by_keepalive_and_user_timeout(
        self, database: Database
    ) -> None:
        import socket

        async with database.reading() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            end = raw._transport.get_extra_info("socket")
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE * 1000

    async def test_a_wrong_password_is_reported_without_showing_it(self, mariadb_url: str) -> None:
        scheme, _, rest = mariadb_url.partition("://")
        wrong = Database(f"{scheme}://root:secret@{rest.partition('@')[2]}", service="shop")
        with pytest.raises(Unreachable, match="Access denied") as caught:
            await wrong.connect()
        assert "secret" not in str(caught.value)
        await wrong.close()

    async def test_a_server_that_does_not_accept_the_largest_message_is_a_usage_error(
        self, database: Database
    ) -> None:
        with pytest.raises(UsageError, match="max_allowed_packet"):
            await database.connect(largest=2**30)

    @pytest.mark.parametrize("option", ["ssl_ca=/none", "bogus=1", "connect_timeout=soon"])
    async def test_an_invalid_url_option_is_an_error_that_names_it(
        self, mariadb_url: str, option: str
    ) -> None:
        with pytest.raises((UsageError, Unreachable), match=r"_DATABASE_URL|option"):
            await Database(f"{mariadb_url}?{option}", service="shop").connect()

    @pytest.mark.parametrize("url", ["mysql://h/x", "mysql+asyncmy://h/x"])
    def test_a_mysql_url_is_a_usage_error(self, url: str) -> None:
        with pytest.raises(UsageError, match=r"MySQL.*write mariadb://"):
            Database(url, service="shop")


async def test_a_worker_killed_in_a_transaction_leaves_no_partial_effects(
    bank: Project, mariadb_url: str, wait_until: Callable[..., Any]
) -> None:
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = mariadb_url
    bank.environment["EVENTMESH_VISIBILITY_TIMEOUT"] = "1s"
    refused = bank.run("db", "upgrade", "bank")
    refused.fails(2, "accounts", "VARCHAR requires a length")
    bank.change_service("mapped_column(primary_key", "mapped_column(String(255), primary_key")
    bank.change_service("import asyncio\n", "import asyncio\nfrom sqlalchemy import String\n")
    bank.run("db", "upgrade", "bank").succeeds("upgraded to")
    killed = bank.worker()
    sent = bank.python(
        "import asyncio\nfrom services.bank.service import Deposit, deposits, service\n"
        "async def main():\n"
        "    async with service:\n"
        "        for owner in ('ann', 'slow', 'bob'):\n"
        "            await deposits.publish(Deposit(owner=owner, cents=100))\n"
        "asyncio.run(main())\n"
    )
    assert sent.code == 0, sent.said
    wait_until((bank.root / "started").exists, "the handler in its transaction")
    killed.tell(signal.SIGKILL)
    killed.ended()
    bank.write("go", "")
    database = Database(mariadb_url, service="bank")

    async def balances() -> dict[str, int]:
        async with database.reading() as connection:
            rows = await connection.execute(text("SELECT owner, cents FROM accounts"))
            return {row.owner: row.cents for row in rows}

    async def all_there() -> bool:
        return len(await balances()) == 3

    running = bank.worker()
    await until(all_there)
    running.drain()
    assert await balances() == {"ann": 100, "slow": 100, "bob": 100}
    await database.close()


class RecordingBroker(MemoryTransport):
    """A broker that records what was published."""

    def __init__(self, clock: MovableClock) -> None:
        super().__init__(clock)
        self.published: list[Envelope] = []

    async def publish(self, envelopes: Any) -> PublishResult:
        self.published.extend(envelopes)
        return await super().publish(envelopes)


def of_key(key: str) -> list[int]:
    return [number for number in range(1_000) if f"k{number % 7}" == key]


@contextmanager
def failing(database: Database, start: str, after: int = 0) -> Iterator[None]:
    """While the context is open, lose the connection before a statement that begins with one of
    these words, after this many of them."""
    left = after

    def fail(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        nonlocal left
        if statement.lstrip().startswith(tuple(start.split("|"))):
            if not left:
                connection.invalidate()
                raise ConnectionError("cut off")
            left -= 1

    event.listen(database.engine.sync_engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", fail)


async def create_spots(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(text("CREATE TABLE spots (id INT PRIMARY KEY, n INT)"))
        await connection.execute(text("INSERT INTO spots VALUES (1, 0), (2, 0)"))


@asynccontextmanager
async def rival_of(database: Database, tx: Transaction) -> AsyncIterator[Callable[[], Any]]:
    """Begin another transaction, and yield a function that deadlocks the two. The other one has
    written more rows, so the server chooses `tx` as the victim."""
    spot = "UPDATE spots SET n = n + 1 WHERE id = "
    async with database.engine.connect() as rival:
        await rival.execute(text("INSERT INTO spots SELECT seq, 0 FROM seq_100_to_2000"))
        await rival.execute(text(f"{spot}2"))

        async def deadlock() -> None:
            await tx.session.execute(text(f"{spot}1"))
            blocked = asyncio.ensure_future(rival.execute(text(f"{spot}1")))
            try:
                await waiting_for_locks(database, 1)
                await tx.session.execute(text(f"{spot}2"))
            finally:
                await blocked

        yield deadlock
        await rival.rollback()


async def waiting_for_locks(database: Database, count: int) -> None:
    """Return once this many transactions wait for a lock in the database."""
    query = (
        "SELECT COUNT(*) FROM information_schema.INNODB_TRX t"
        " JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id"
        " WHERE t.trx_state = 'LOCK WAIT' AND p.DB = DATABASE()"
    )

    async with asyncio.timeout(60), database.reading() as connection:
        while await connection.scalar(text(query)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.15)  # the server caches the answer for 0.1 s


async def rows_read(connection: AsyncConnection) -> int:
    """How many rows of tables and indexes this connection has read so far."""
    rows = await connection.execute(text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
    return sum(int(value) for _, value in rows)
