"""What `service.join` promises for an application's own session: its messages are in the outbox if
and only if its commit succeeds. Checked with each driver that SQLAlchemy has for the databases."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    object_session,
    sessionmaker,
)

from eventmesh import Event, Service, Settings
from eventmesh.errors import Drift, MessageTooLarge, UndeclaredMessage, UsageError
from eventmesh.persistence import notifications
from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import outbox

DRIVERS = {
    "aiosqlite": ("sqlite", "sqlite+aiosqlite"),
    "asyncpg": ("postgres", "postgresql+asyncpg"),
    "psycopg": ("postgres", "postgresql+psycopg"),
    "asyncmy": ("mariadb", "mariadb+asyncmy"),
}
PLAIN_DRIVERS = {
    "pysqlite": ("sqlite", "sqlite+pysqlite"),
    "psycopg": ("postgres", "postgresql+psycopg"),
}


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)


class Placed(Event, name="orders.placed", version=1, key="key"):
    number: int
    key: str = "k"
    note: str = ""


class Undeclared(Event, name="orders.undeclared", version=1):
    number: int


class Foreign(Event, name="payments.paid", version=1):
    number: int


@dataclass
class App:
    """An application with its own engine, and its service."""

    service: Service
    engine: AsyncEngine
    url: str
    wakes: list[str]

    def __post_init__(self) -> None:
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    async def orders(self) -> list[int]:
        async with self.engine.connect() as connection:
            return list(await connection.scalars(select(Order.number).order_by(Order.number)))

    async def published(self) -> list[int]:
        """The names in the outbox, in their order."""
        async with self.engine.connect() as connection:
            rows = await connection.scalars(select(outbox.c.data).order_by(outbox.c.seq))
            return [json.loads(data)["number"] for data in rows]


def url_for(driver: str, url: str) -> str:
    return make_url(url).set(drivername=driver).render_as_string(hide_password=False)


def encoding(url: str) -> dict[str, str]:
    """The encoding to connect with: psycopg reads text as bytes from a database without
    encoding."""
    return {"client_encoding": "utf8"} if "psycopg" in url else {}


async def make_own_tables(url: str) -> None:
    """Make the application's own tables beside those of EventMesh."""
    engine = create_async_engine(url, connect_args=encoding(url))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


def make_service(url: str, **settings: Any) -> Service:
    service = Service("orders", metadata=Base.metadata)
    service.configure(Settings(database_urls={"orders": url}, **settings))
    service.publisher(Placed)
    return service


@pytest.fixture(params=DRIVERS)
def driver_url(request: pytest.FixtureRequest) -> str:
    """A new database with EventMesh's tables and each driver for it, in turn."""
    database, driver = DRIVERS[request.param]
    return url_for(driver, request.getfixturevalue(f"migrated_{database}_url"))


@pytest.fixture(params=DRIVERS)
def empty_driver_url(request: pytest.FixtureRequest) -> str:
    """A new, empty database and each driver for it, in turn."""
    database, driver = DRIVERS[request.param]
    return url_for(driver, request.getfixturevalue(f"{database}_url"))


@pytest.fixture
async def app(driver_url: str) -> AsyncIterator[App]:
    url = driver_url
    await make_own_tables(url)
    service, wakes = make_service(url, max_message_bytes=10_000), list[str]()
    engine = create_async_engine(url, connect_args=encoding(url))
    service.on_commit(lambda _: wakes.append("woken"))
    yield App(service, engine, url, wakes)
    await engine.dispose()
    await service.close()


class TestCommit:
    async def test_stores_state_and_messages_together(self, app: App) -> None:
        async with app.sessions() as session:
            tx = app.service.join(session)
            session.add(Order(number=1))
            tx.publish(Placed(number=1))
            tx.publish(Placed(number=2))
            assert tx.session is session
            assert await app.published() == []
            await session.commit()
        assert (await app.orders(), await app.published()) == ([1], [1, 2])
        await asyncio.sleep(0)
        assert app.wakes == ["woken"]

    async def test_may_be_that_of_a_begin_block(self, app: App) -> None:
        async with app.sessions.begin() as session:
            session.add(Order(number=1))
            app.service.join(session).publish(Placed(number=1))
        async with app.sessions() as session:
            tx = app.service.join(session)
            async with session.begin():
                session.add(Order(number=2))
                tx.publish(Placed(number=2))
        assert (await app.orders(), await app.published()) == ([1, 2], [1, 2])

    async def test_stores_messages_even_if_nothing_else_changed(self, app: App) -> None:
        async with app.sessions() as session:
            app.service.join(session).publish(Placed(number=1))
            await session.commit()
        assert await app.published() == [1]

    async def test_executes_no_further_statement_if_nothing_was_published(self, app: App) -> None:
        statements: list[str] = []
        event.listen(
            app.engine.sync_engine,
            "before_cursor_execute",
            lambda _c, _cursor, statement, *_: statements.append(statement),
        )
        async with app.sessions() as session:
            app.service.join(session)
            session.add(Order(number=1))
            await session.commit()
        first = ["SAVEPOINT"] if "mariadb" in app.url else []  # by which a deadlock is found
        assert [each.split()[0] for each in statements] == [*first, "INSERT"]
        await asyncio.sleep(0)
        assert app.wakes == []

    async def test_stores_all_messages_in_one_statement_at_the_end(self, app: App) -> None:
        statements: list[str] = []
        event.listen(
            app.engine.sync_engine,
            "before_cursor_execute",
            lambda _c, _cursor, statement, *_: statements.extend(
                re.findall(r"INSERT INTO \W?(\w+)", statement)
            ),
        )
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            for number in range(1, 6):
                tx.publish(Placed(number=number))
                session.add(Order(number=number))
            async with session.begin_nested():
                tx.publish(Placed(number=6))
            assert "eventmesh_outbox" not in statements
        assert [name for name in statements if name in ("orders", "eventmesh_outbox")] == [
            "orders",
            "eventmesh_outbox",
        ]
        assert await app.published() == [1, 2, 3, 4, 5, 6]

    async def test_joining_twice_in_one_transaction_is_the_same_as_joining_once(
        self, app: App
    ) -> None:
        async with app.sessions.begin() as session:
            app.service.join(session).publish(Placed(number=1))
            app.service.join(session).publish(Placed(number=2))
        assert await app.published() == [1, 2]

    async def test_a_second_transaction_of_the_session_has_its_own_messages(self, app: App) -> None:
        async with app.sessions() as session:
            first = app.service.join(session)
            first.publish(Placed(number=1))
            await session.commit()
            await session.commit()
            with pytest.raises(UsageError, match="Join the session again"):
                first.publish(Placed(number=99))
            app.service.join(session).publish(Placed(number=2))
            await session.commit()
        assert await app.published() == [1, 2]

    async def test_two_services_of_one_database_can_join_the_same_session(self, app: App) -> None:
        other = make_service(app.url)
        other.name = "bills"
        other.configure(Settings(database_urls={"bills": app.url}))
        async with app.sessions.begin() as session:
            app.service.join(session).publish(Placed(number=1))
            other.join(session).publish(Placed(number=2))
        assert sorted(await app.published()) == [1, 2]

    async def test_stores_what_commit_listeners_publish(self, app: App) -> None:
        """Some applications collect their domain events there. It works whichever listener came
        first."""
        async with app.sessions() as session:
            tx = app.service.join(session)
            for number, name in enumerate(("before_commit", "after_flush"), 1):

                def listener(*_: object, number: int = number) -> None:
                    tx.publish(Placed(number=number))

                event.listen(session.sync_session, name, listener)
            session.add(Order(number=1))
            await session.commit()
        assert sorted(await app.published()) == [1, 2]

    @pytest.mark.parametrize("name", ["before_commit", "before_flush", "after_flush"])
    @pytest.mark.parametrize("kind", ["class", "session"])
    async def test_stores_what_is_published_by_a_listener_that_joins_the_session(
        self, app: App, kind: str, name: str
    ) -> None:
        """By then SQLAlchemy no longer calls the listeners that joining adds."""
        if "mariadb" in app.url and (kind, name) == ("session", "before_flush"):
            pytest.skip("there, joining listens to before_flush, too")

        class Collecting(Session):
            pass

        numbers = iter((1, 2))

        def collect(session: Session, *_: object) -> None:
            app.service.join(session).publish(Placed(number=next(numbers)))

        session = AsyncSession(app.engine, sync_session_class=Collecting)
        event.listen(Collecting if kind == "class" else session.sync_session, name, collect)
        session.add(Order(number=1))
        await session.commit()
        assert (await app.orders(), await app.published()) == ([1], [1])
        session.add(Order(number=2))
        await session.commit()
        await session.close()
        assert (await app.orders(), await app.published()) == ([1, 2], [1, 2])
        await asyncio.sleep(0)
        assert app.wakes == ["woken"] * 2

    async def test_stores_what_a_mapper_listener_publishes(self, app: App) -> None:
        def collect(_mapper: object, _connection: object, order: Order) -> None:
            session = object_session(order)
            assert session is not None
            app.service.join(session).publish(Placed(number=order.number))

        event.listen(Order, "after_insert", collect)
        try:
            async with app.sessions.begin() as session:
                session.add(Order(number=1))
        finally:
            event.remove(Order, "after_insert", collect)
        assert (await app.orders(), await app.published()) == ([1], [1])

    async def test_a_session_that_was_joined_in_the_release_of_a_savepoint_stores_once_committed(
        self, app: App
    ) -> None:
        session = app.sessions()

        def collect(plain: Session) -> None:
            app.service.join(plain).publish(Placed(number=1))

        event.listen(session.sync_session, "before_commit", collect)
        async with session.begin():
            async with session.begin_nested():
                session.add(Order(number=1))
            event.remove(session.sync_session, "before_commit", collect)
            app.service.join(session).publish(Placed(number=2))
            async with session.begin_nested() as failing:
                app.service.join(session).publish(Placed(number=3))
                await failing.rollback()
        assert (await app.orders(), await app.published()) == ([1], [1, 2])

    async def test_a_listener_of_the_commit_may_join_after_a_savepoint_that_it_rolled_back(
        self, app: App
    ) -> None:
        session = app.sessions()

        def collect(plain: Session) -> None:
            if plain.in_nested_transaction():  # the savepoint below
                return
            with plain.begin_nested() as savepoint:
                plain.add(Order(number=2))
                savepoint.rollback()
            app.service.join(plain).publish(Placed(number=1))

        event.listen(session.sync_session, "before_commit", collect)
        session.add(Order(number=1))
        await session.commit()
        await session.close()
        assert (await app.orders(), await app.published()) == ([1], [1])

    async def test_concurrent_sessions_do_not_mix_their_messages(self, app: App) -> None:
        async def place(number: int) -> None:
            async with app.sessions.begin() as session:
                session.add(Order(number=number))
                await session.flush()
                app.service.join(session).publish(Placed(number=number))

        numbers = range(1, 21)
        await asyncio.gather(*(place(number) for number in numbers))
        assert await app.orders() == sorted(await app.published()) == list(numbers)


class TestRollback:
    async def test_drops_the_messages(self, app: App) -> None:
        async with app.sessions() as session:
            tx = app.service.join(session)
            session.add(Order(number=1))
            tx.publish(Placed(number=1))
            await session.rollback()
            await session.commit()
        assert (await app.orders(), await app.published()) == ([], [])
        await asyncio.sleep(0)
        assert app.wakes == []

    async def test_drops_messages_published_before_any_statement(self, app: App) -> None:
        async with app.sessions() as session:
            app.service.join(session).publish(Placed(number=1))
            await session.rollback()
            await session.commit()
        assert await app.published() == []

    async def test_closing_without_a_commit_drops_the_messages(self, app: App) -> None:
        session = app.sessions()
        session.add(Order(number=1))
        app.service.join(session).publish(Placed(number=1))
        await session.close()
        await session.commit()  # the session begins a new transaction
        assert (await app.orders(), await app.published()) == ([], [])

    async def test_an_error_in_a_begin_block_drops_the_messages(self, app: App) -> None:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012  # the error comes after the work
            async with app.sessions.begin() as session:
                app.service.join(session).publish(Placed(number=1))
                _ = 1 / 0
        assert await app.published() == []

    async def test_a_failed_commit_drops_the_messages(self, app: App) -> None:
        async with app.sessions.begin() as session:
            session.add(Order(number=1))
        async with app.sessions() as session:
            app.service.join(session).publish(Placed(number=1))
            session.add(Order(number=1))
            with pytest.raises(IntegrityError):
                await session.commit()
            await session.rollback()
            app.service.join(session).publish(Placed(number=2))
            await session.commit()
        assert await app.published() == [2]


class TestSavepoint:
    """On SQLite the driver begins the transactions, as it does for an application without
    listeners."""

    async def test_rolling_back_drops_the_messages_of_the_savepoint(self, app: App) -> None:
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            session.add(Order(number=1))
            tx.publish(Placed(number=1))
            with pytest.raises(ZeroDivisionError):  # noqa: PT012
                async with session.begin_nested():
                    session.add(Order(number=2))
                    tx.publish(Placed(number=2))
                    _ = 1 / 0
            async with session.begin_nested():
                session.add(Order(number=3))
                tx.publish(Placed(number=3))
            tx.publish(Placed(number=4))
        assert (await app.orders(), await app.published()) == ([1, 3], [1, 3, 4])
        await asyncio.sleep(0)
        assert app.wakes == ["woken"]

    async def test_rolling_back_drops_the_messages_of_nested_savepoints(self, app: App) -> None:
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            await session.flush()
            outer = await session.begin_nested()
            async with session.begin_nested():
                tx.publish(Placed(number=1))
            tx.publish(Placed(number=2))
            await outer.rollback()
            async with session.begin_nested():
                inner = await session.begin_nested()
                tx.publish(Placed(number=3))
                await inner.rollback()
                tx.publish(Placed(number=4))
        assert await app.published() == [4]

    async def test_a_failed_statement_drops_the_messages_of_its_savepoint(self, app: App) -> None:
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            session.add(Order(number=1))
            await session.flush()
            with pytest.raises(IntegrityError):  # noqa: PT012
                async with session.begin_nested():
                    tx.publish(Placed(number=1))
                    await session.execute(text("INSERT INTO orders VALUES (1)"))
            with pytest.raises(IntegrityError):  # noqa: PT012
                async with session.begin_nested():
                    tx.publish(Placed(number=2))
                    session.add(Order(number=1))
            tx.publish(Placed(number=3))
        assert await app.published() == [3]

    async def test_committing_releases_open_savepoints_and_stores_their_messages(
        self, app: App
    ) -> None:
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            session.add(Order(number=1))
            await session.begin_nested()
            tx.publish(Placed(number=1))
            await session.begin_nested()
            tx.publish(Placed(number=2))
        async with app.sessions() as session:
            tx = app.service.join(session)
            tx.publish(Placed(number=3))
            await session.begin_nested()
            await session.commit()
        assert (await app.orders(), await app.published()) == ([1], [1, 2, 3])

    async def test_outer_messages_stored_within_a_savepoint_are_stored_again_after_its_rollback(
        self, app: App
    ) -> None:
        """Releasing an outer savepoint while an inner one is open stores its messages early."""
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            session.add(Order(number=1))
            tx.publish(Placed(number=1))
            outer = await session.begin_nested()
            middle = await session.begin_nested()
            tx.publish(Placed(number=2))
            await session.begin_nested()
            await middle.commit()
            await outer.rollback()
            tx.publish(Placed(number=3))
        assert await app.published() == [1, 3]


class TestErrors:
    """Each error is raised where the mistake is made, and nothing is stored."""

    async def test_an_invalid_publish_raises_as_it_does_elsewhere(self, app: App) -> None:
        async with app.sessions.begin() as session:
            tx = app.service.join(session)
            with pytest.raises(UndeclaredMessage, match=r"service\.publisher\(Undeclared\)"):
                tx.publish(Undeclared(number=1))
            with pytest.raises(UndeclaredMessage, match=r"payments\.paid"):
                tx.publish(Foreign(number=1))
            with pytest.raises(MessageTooLarge, match="EVENTMESH_MAX_MESSAGE_BYTES"):
                tx.publish(Placed(number=1, note="x" * 20_000))
            with pytest.raises(UsageError, match="use publish for an event"):
                tx.send(Placed(number=1))  # type: ignore[arg-type]
        assert await app.published() == []

    async def test_publishing_does_not_begin_the_transaction_of_a_session_that_must_not_autobegin(
        self, app: App
    ) -> None:
        async with AsyncSession(app.engine, autobegin=False) as session:
            tx = app.service.join(session)
            with pytest.raises(UsageError, match=r"within `with session\.begin\(\):`"):
                tx.publish(Placed(number=1))
            async with session.begin():
                tx.publish(Placed(number=2))
        assert await app.published() == [2]

    async def test_a_session_of_another_database_cannot_be_joined(
        self, app: App, tmp_path: Path
    ) -> None:
        others = [f"sqlite+aiosqlite:///{tmp_path}/other.db", "sqlite+aiosqlite://"]
        if app.engine.dialect.name != "sqlite":
            same = make_url(app.url).set(database="other")
            others.append(same.render_as_string(hide_password=False))
        for url in others:
            engine = create_async_engine(url)
            async with AsyncSession(engine) as session:
                with pytest.raises(UsageError, match="EVENTMESH_ORDERS_DATABASE_URL") as caught:
                    app.service.join(session)
            await engine.dispose()
            if make_url(app.url).password:
                assert str(make_url(app.url).password) not in str(caught.value)

    async def test_a_session_without_an_engine_cannot_be_joined(self, app: App) -> None:
        async with AsyncSession() as session:
            with pytest.raises(UsageError, match="has no engine"):
                app.service.join(session)

    async def test_only_a_session_can_be_joined(self, app: App) -> None:
        for what in (app.engine, app.sessions, None):
            with pytest.raises(UsageError, match=f"cannot join {type(what).__name__}: .*sessions"):
                app.service.join(what)  # type: ignore[arg-type]

    async def test_the_session_of_an_eventmesh_transaction_cannot_be_joined(self, app: App) -> None:
        async with app.service.transaction() as tx:
            with pytest.raises(UsageError, match="EventMesh's own"):
                app.service.join(tx.session)


async def test_a_session_in_autocommit_mode_is_an_error(app: App) -> None:
    service = app.service
    engine = create_async_engine(
        app.url, connect_args=encoding(app.url), isolation_level="AUTOCOMMIT"
    )
    async with AsyncSession(engine) as session:
        service.join(session).publish(Placed(number=1))
        with pytest.raises(UsageError, match="AUTOCOMMIT"):
            await session.commit()
    async with AsyncSession(engine) as session:
        assert (await session.scalars(select(outbox.c.id))).all() == []
    await engine.dispose()


async def test_a_sqlite_session_whose_application_begins_its_own_transactions_can_be_joined(
    migrated_sqlite_url: str,
) -> None:
    """As SQLAlchemy recommends for applications that use savepoints."""
    service = make_service(migrated_sqlite_url)
    engine = create_async_engine(migrated_sqlite_url)

    @event.listens_for(engine.sync_engine, "connect")
    def disable_driver_transactions(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    async with AsyncSession(engine) as session:
        service.join(session).publish(Placed(number=1))
        await session.rollback()
        service.join(session).publish(Placed(number=2))
        await session.commit()
        assert len((await session.scalars(select(outbox.c.id))).all()) == 1
    await engine.dispose()


async def test_missing_tables_are_drift_and_the_error_names_the_command(
    empty_driver_url: str,
) -> None:
    service = make_service(empty_driver_url)
    engine = create_async_engine(empty_driver_url, connect_args=encoding(empty_driver_url))
    async with AsyncSession(engine) as session:
        service.join(session).publish(Placed(number=1))
        with pytest.raises(Drift, match="eventmesh db upgrade orders"):
            await session.commit()
    await engine.dispose()


@pytest.fixture(params=PLAIN_DRIVERS)
def plain_url(request: pytest.FixtureRequest) -> str:
    """A new database with EventMesh's tables and each driver without asyncio for it, in turn."""
    database, driver = PLAIN_DRIVERS[request.param]
    return url_for(driver, request.getfixturevalue(f"migrated_{database}_url"))


async def test_a_synchronous_session_in_a_thread_can_be_joined(plain_url: str) -> None:
    """As in a handler that is a plain function; the relay is woken on its own event loop."""
    service = make_service(plain_url)
    engine = create_engine(plain_url, connect_args=encoding(plain_url))
    Base.metadata.create_all(engine)
    woken = asyncio.Event()
    service.on_commit(lambda _: woken.set())

    def handle() -> None:
        sessions = sessionmaker(engine)
        with sessions.begin() as session:
            tx = service.join(session)
            session.add(Order(number=1))
            tx.publish(Placed(number=1))
        with sessions() as session:
            service.join(session).publish(Placed(number=2))

    await asyncio.to_thread(handle)
    await asyncio.wait_for(woken.wait(), 60)
    with Session(engine) as session:
        assert [json.loads(d)["number"] for d in session.scalars(select(outbox.c.data))] == [1]
    engine.dispose()


async def test_a_commit_wakes_the_relays_of_other_processes(
    migrated_postgres_url: str,
) -> None:
    """This holds if the service's database is open; otherwise the relays find messages by
    polling."""
    await make_own_tables(migrated_postgres_url)
    heard = asyncio.Queue[None]()
    other = Database(migrated_postgres_url, service="orders")
    listening = asyncio.ensure_future(notifications.listen(other, lambda: heard.put_nowait(None)))
    await asyncio.wait_for(heard.get(), 60)  # listening has begun
    engine = create_async_engine(migrated_postgres_url)
    async with make_service(migrated_postgres_url) as service:
        async with AsyncSession(engine) as session, session.begin():
            service.join(session).publish(Placed(number=1))
        await asyncio.wait_for(heard.get(), 60)
    listening.cancel()
    await asyncio.wait([listening])
    await engine.dispose()
    await other.close()


async def test_joining_a_scoped_session_joins_its_current_session(app: App) -> None:
    sessions = async_scoped_session(app.sessions, asyncio.current_task)
    app.service.join(sessions).publish(Placed(number=1))
    sessions.add(Order(number=1))
    await sessions.commit()
    await sessions.remove()
    assert await app.published() == [1]


async def test_a_joined_session_is_freed_without_the_garbage_collector(app: App) -> None:
    gc.collect()
    gc.disable()
    try:
        async with app.sessions() as session:
            tx = app.service.join(session)
            async with session.begin_nested():
                tx.publish(Placed(number=1))
            await session.commit()
        freed = weakref.ref(session.sync_session)
        del session, tx
        assert freed() is None
    finally:
        gc.enable()


async def test_a_savepoint_that_a_handler_rolls_back_drops_its_messages(app: App) -> None:
    """In a transaction that EventMesh began, as a handler has it."""
    async with app.service.transaction() as tx:
        tx.publish(Placed(number=1))
        for number, fails in ((2, True), (3, False), (4, True)):
            try:
                async with tx.session.begin_nested():
                    tx.session.add(Order(number=number))
                    tx.publish(Placed(number=number))
                    _ = 1 / (0 if fails else 1)
            except ZeroDivisionError:
                pass
        tx.publish(Placed(number=5))
    assert (await app.orders(), await app.published()) == ([3], [1, 3, 5])
