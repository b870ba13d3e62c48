"""A service's database: its engine, its sessions, and what is said when it does not answer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, event, text
from sqlalchemy import MetaData as MetaData  # named here for the floors above
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InvalidRequestError,
    PendingRollbackError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.ext.asyncio import AsyncSession as AsyncSession
from sqlalchemy.util import await_only

from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import unit_of_work
from eventmesh.persistence.database_time import DatabaseTime
from eventmesh.persistence.dialects import mariadb, mariadb_url, postgresql, postgresql_url
from eventmesh.persistence.notify import Doorbell
from eventmesh.persistence.transaction import Sender
from eventmesh.persistence.unit_of_work import UnitOfWork
from eventmesh.private_files import make_private_file, make_private_folder
from eventmesh.redact import redact, redact_error

_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    mariadb.NAME: "mariadb+asyncmy",
}
_WRITTEN = (
    "postgresql://user:password@host:port/database, mariadb://user:password@host:port/database or "
    "sqlite:///path/to/file.db"
)
_CONNECT_TIMEOUT = 10.0  # seconds
_KEPT_CONNECTIONS = 10  # open while idle; others are closed after use
_SPARE_CONNECTIONS = 20  # beyond the handlers': the relay's, and transactions outside handlers

# PostgreSQL's Appendix A. Classes: connection, authorization, unknown database.
_GONE_CLASSES = ("08", "28", "3D")
# Read-only after a failover, disk full, too many connections, shut down or starting.
_GONE = ("25006", "53100", "53300", "57P01", "57P02", "57P03", "57P05")
# "Not currently accepting connections"; of a statement, it says that the statement is wrong.
_NOT_ACCEPTING = "55000"
# What SQLAlchemy says to who goes on with a transaction whose connection it has given up.
_GIVEN_UP = "8s2b"
# What our own statements are simply tried again for: serialization, deadlock, lock not available,
# cancelled by a statement_timeout or an administrator, too little memory.
_OWN_STATEMENTS = ("40001", "40P01", "55P03", "57014", "53200", "54000")

_NO_TRANSACTION = "eventmesh_no_transaction"
_LOCK_TIMEOUT = 30.0  # seconds that SQLite waits for another process's transaction
_LOCK_TRIES = 300  # in these seconds, where it does not wait by itself
_ANSWER_TIMEOUT = 40.0  # seconds for statements of our own, some of which wait for a lock


class Database:
    """One process's hold on one service's database.

    `connections` is how many transactions the process may need at a time, beside a few for itself;
    a connection is opened when it is needed.
    """

    def __init__(self, url: str, *, service: str, connections: int = 0) -> None:
        self.service = service
        self._given_url = url
        self.url = parse_url(url, service)
        with self.translated():  # a SQLite file's folder is made
            self.engine = _make_engine(self.url, self.variable, connections)
        unit_of_work.guard(self.engine.sync_engine)
        self.losses = 0
        """How often somebody found a connection lost. Whoever uses one after that may meet another
        server than before, though nothing fails for him."""
        event.listen(self.engine.sync_engine.pool, "invalidate", self._count_loss)
        self.time = DatabaseTime()
        self.doorbell = Doorbell(self)

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a SQLite file, whose tables EventMesh makes by itself."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def is_mariadb(self) -> bool:
        """Whether this is a MariaDB server's."""
        return self.url.get_backend_name() == mariadb.NAME

    @property
    def is_postgresql(self) -> bool:
        """Whether this is a PostgreSQL server's."""
        return self.url.get_backend_name() == postgresql.NAME

    def __repr__(self) -> str:
        return f"Database({self.service!r}, {self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The URL for people and logs."""
        return redact(self._given_url)

    def _said(self, error: BaseException) -> str:
        """What a driver says, for people and logs."""
        return redact_error(_first_line(error), self._given_url)

    @property
    def variable(self) -> str:
        """The environment variable that names this database."""
        return f"EVENTMESH_{self.service.upper()}_DATABASE_URL"

    def _count_loss(self, _connection: object, _record: object, error: object) -> None:
        if isinstance(error, Exception):  # else it was given up by us, or by a cancellation
            self.losses += 1

    async def connect(self, *, largest: int = 0) -> None:
        """Unreachable, with what to do about it, when the database does not answer; UsageError when
        it is none that takes messages of `largest` bytes."""
        try:
            async with self.connection() as connection:
                await connection.execute(text("SELECT 1"))
                if self.is_mariadb:
                    await mariadb.check(connection, largest)
        except Unreachable as error:
            # The text says it all; a program of the user's shows no chain of driver errors.
            raise error from None
        except (DBAPIError, InvalidRequestError, OverflowError, TypeError, ValueError) as error:
            # What drivers say of odd options, for the statement itself cannot be wrong.
            raise UsageError(
                f"{self.variable} cannot be used: {self._said(error)}. Write it as {_WRITTEN}."
            ) from None

    async def close(self) -> None:
        """Close all connections."""
        await self.doorbell.close()
        await self.engine.dispose()

    def unit_of_work(self, sender: Sender) -> UnitOfWork:
        """A transaction with messages, to be committed by its `commit`."""
        return UnitOfWork(self.engine, sender, self.translated)

    @asynccontextmanager
    async def connection(
        self, *, within: float | None = _ANSWER_TIMEOUT
    ) -> AsyncIterator[AsyncConnection]:
        """A connection, for statements of our own, in a transaction that is committed on leaving;
        Unreachable as in connect, also when all of it takes longer than `within` seconds."""
        with self.own_statements():
            async with asyncio.timeout(within), self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for single reads, which takes no lock that a writer has to wait for;
        Unreachable as in `connection`."""
        with self.own_statements():
            async with asyncio.timeout(_ANSWER_TIMEOUT), self.engine.connect() as connection:
                if self.is_sqlite:  # where the isolation level costs statements of its own
                    yield await connection.execution_options(**{_NO_TRANSACTION: True})
                elif self.is_mariadb:  # where it does so too, and reads take no locks
                    yield connection
                else:
                    yield await connection.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def queue(self, *, reads: bool = False) -> AsyncIterator[AsyncConnection]:
        """A connection as in `connection`, or in `reading`, for statements that work off a table,
        at any length of it. What they did may be undone if the server crashes: it is done again."""
        if self.is_postgresql:
            async with self.connection() as connection:
                await connection.execute(postgresql.GUARD)
                yield connection
        else:
            async with self.reading() if reads else self.connection() as connection:
                yield connection

    @asynccontextmanager
    async def maintenance(self) -> AsyncIterator[AsyncConnection]:
        """A connection, outside any transaction, to the server, whether the database is there or
        not: to PostgreSQL's own database, or to none."""
        url = self.url.set(database="" if self.is_mariadb else "postgres")
        engine = _make_engine(url, self.variable, 0)
        try:
            with self.translated():
                async with engine.connect() as connection:
                    yield await connection.execution_options(isolation_level="AUTOCOMMIT")
        finally:
            await engine.dispose()

    def own_statements(self) -> AbstractContextManager[None]:
        """Raise Unreachable also for what our own statements are simply tried again for."""
        return self.translated(_OWN_STATEMENTS)

    @contextmanager
    def translated(self, also: Collection[str] = ()) -> Iterator[None]:
        """Raise Unreachable for what a lost or absent database makes drivers raise, and for these
        SQLSTATEs too."""
        try:
            yield
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            if isinstance(error, SQLAlchemyError) and not (
                connection_lost(error)
                or isinstance(error, NoConnectionFree)
                or (isinstance(error, DBAPIError) and _sqlstate(error) in also)
            ):
                raise
            advice = f"Start it, or correct {self.variable}."
            if _is_of_certificate(error):
                advice = (
                    f"Its certificate is not one that {self.variable} accepts: correct there what "
                    f"names the authority, or the host."
                )
            if isinstance(error, DBAPIError) and _sqlstate(error) == "3D000":
                advice = (
                    f"Make it with `eventmesh db upgrade --create {self.service}`, or correct "
                    f"{self.variable}."
                )
            raise Unreachable(
                f"The database of service {self.service!r} ({self.shown_url}) does not answer: "
                f"{self._said(error)}. {advice}"
            ) from error


def parse_url(url: str, service: str) -> URL:
    """The URL with the driver EventMesh uses; UsageError for what is no database it knows."""
    variable = f"EVENTMESH_{service.upper()}_DATABASE_URL"
    try:
        parsed = make_url(postgresql_url.split_hosts(url))
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise UsageError(f"{variable} is no database URL. Write {_WRITTEN}.") from None
    if backend == "postgres":
        backend = "postgresql"
    if backend == "mysql":
        raise UsageError(
            f"{variable} names a mysql database, in which EventMesh cannot keep its promises: it "
            f"needs INSERT … RETURNING, which MySQL does not have. If the server is MariaDB, write "
            f"mariadb://; else use postgresql:// or sqlite:///."
        )
    if backend not in _DRIVERS:
        raise UsageError(
            f"{variable} names a database of the kind {redact_error(repr(backend), url)}, which "
            f"EventMesh does not know. Use postgresql://, mariadb:// or sqlite:///."
        )
    if parsed.port is not None and not 0 < parsed.port < 2**16:  # uvloop would take a part of it
        raise UsageError(
            f"{variable} names the port {redact_error(parsed.port, url)}; ports go from 1 to 65535."
        )
    try:
        if backend == postgresql.NAME:
            parsed = postgresql_url.normal(parsed, variable)
            postgresql_url.parameters(parsed, variable)  # which are all to be understood
        elif backend == mariadb.NAME:
            mariadb_url.tls(parsed, variable)
    except UsageError as error:  # a password that was not escaped may look like parameters
        raise UsageError(redact_error(error, url)) from None
    return parsed.set(drivername=_DRIVERS[backend])


def shown(url: URL) -> str:
    """A database's URL for people and logs: without passwords, and without where keys are."""
    return redact(url.render_as_string(hide_password=True))


def connection_lost(error: BaseException) -> bool:
    """Whether a statement failed because the database is gone, rather than because it is wrong."""
    if connection_cut(error):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = _sqlstate(error)
    name = str(getattr(error.orig, "sqlite_errorname", "") or "")
    return (
        state[:2] in _GONE_CLASSES
        or state in _GONE
        or (state == _NOT_ACCEPTING and error.statement is None)  # said to who connects
        or name.startswith(
            (
                "SQLITE_BUSY",
                "SQLITE_CANTOPEN",
                "SQLITE_CORRUPT",
                "SQLITE_FULL",
                "SQLITE_IOERR",
                "SQLITE_NOTADB",
                "SQLITE_READONLY",
            )
        )
    )


def comes_from_database(error: BaseException) -> bool:
    """Whether this is an error of a session or a statement, or was raised because of one."""
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if isinstance(link, SQLAlchemyError):
            return True
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            links += [link.__cause__, link.__context__]
    return False


def connection_cut(error: BaseException | None) -> bool:
    """Whether a statement failed because its connection was ended from the other side, with it or
    with one before it, whose error somebody caught."""
    if isinstance(error, PendingRollbackError):
        return error.code == _GIVEN_UP
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _sqlstate(error: DBAPIError) -> str:
    return mariadb.sqlstate(error.orig) or str(getattr(error.orig, "sqlstate", "") or "")


def _make_engine(url: URL, variable: str, connections: int) -> AsyncEngine:
    options: dict[str, Any] = {
        "pool_size": _KEPT_CONNECTIONS,
        "max_overflow": connections + _SPARE_CONNECTIONS - _KEPT_CONNECTIONS,
        # pydantic's, because it keeps integers of any size.
        "json_serializer": lambda value: to_json(value).decode(),
        "json_deserializer": from_json,
    }
    if url.get_backend_name() == mariadb.NAME:
        return mariadb.make_engine(url, variable, _CONNECT_TIMEOUT, options)
    if url.get_backend_name() != "sqlite":
        from eventmesh.persistence.dialects import postgresql_engine

        return postgresql_engine.make_engine(url, variable, _CONNECT_TIMEOUT, options)
    if url.database:
        make_private_folder(Path(url.database).parent)
    engine = create_async_engine(url, connect_args={"timeout": _LOCK_TIMEOUT}, **options)
    event.listen(engine.sync_engine, "do_connect", _make_sqlite_file)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_immediate)
    return engine


def _make_sqlite_file(_dialect: object, _record: object, arguments: Any, _options: object) -> None:
    path = str(arguments[0])
    if path and not path.startswith((":memory:", "file:")):
        make_private_file(Path(path))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions of its own; `_begin_immediate` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    _write_ahead(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """SQLite does not wait for its lock where a file is made write-ahead, which several processes
    may do to a new one at a time."""
    for _ in range(_LOCK_TRIES):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        await_only(asyncio.sleep(_LOCK_TIMEOUT / _LOCK_TRIES))
    cursor.execute("PRAGMA journal_mode = WAL")


def _begin_immediate(connection: Connection) -> None:
    # A transaction that reads first and writes later would fail when another wrote meanwhile.
    if _NO_TRANSACTION not in connection.get_execution_options():
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _is_of_certificate(error: BaseException | None) -> bool:
    """Whether the driver did not accept the server's certificate."""
    while error is not None and not isinstance(error, SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def _first_line(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, TimeoutError) and not str(cause):
        return "it took too long"
    match getattr(cause, "args", ()):
        case int(), str(said):  # how MariaDB's driver says it
            lines = said.splitlines()
        case _:
            lines = str(cause).splitlines()
    return (lines[0] if lines else type(cause).__name__).rstrip(".")
