"""A service's database: its engine, the connections that EventMesh uses, and its units of work.

Handlers' statements run in a unit of work. EventMesh's own run on a connection of one of these
kinds, each a context manager:

    connection   one transaction, committed on leaving
    reading      single reads outside of a transaction
    queue        reads and deletes of a work queue, whose plans and commits are cheap; on
                 PostgreSQL, on connections that serve nothing else
    maintenance  the server itself, before the service's database is there

What is executed often is given to `transact`, `read`, `read_queue` or `write_to_queue` instead, as
a plain function of a Connection. SQLAlchemy goes to its greenlet and back once for all of it, where
it does so for each call of an AsyncConnection, to open and to close it, too. That costs more than
most of our statements:

    rows = await database.read(lambda connection: leases.count(connection, now))

All of them raise Unreachable, with advice, when the database is lost or away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal, TypeVar

from pydantic_core import from_json, to_json
from sqlalchemy import Connection as Connection  # named here for the floors above
from sqlalchemy import MetaData as MetaData
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionFree
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.ext.asyncio import AsyncSession as AsyncSession
from sqlalchemy.util import greenlet_spawn

from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import unit_of_work
from eventmesh.persistence.database_errors import (
    NO_RIGHT,
    REPEATABLE,
    connection_lost,
    first_line,
    is_of_certificate,
)
from eventmesh.persistence.database_time import DatabaseTime
from eventmesh.persistence.database_url import EXAMPLES, parse_url
from eventmesh.persistence.dialects.registry import DIALECTS, sqlstate
from eventmesh.persistence.notifier import Notifier
from eventmesh.persistence.transaction import Sender
from eventmesh.persistence.unit_of_work import UnitOfWork
from eventmesh.redact import redact, redact_error

_CONNECT_TIMEOUT = 10.0  # seconds
_KEPT_CONNECTIONS = 10  # open while idle; others are closed after use
_SPARE_CONNECTIONS = 17  # beyond the handlers': leases, and transactions outside handlers
_QUEUE_CONNECTIONS = 3  # the relay's rounds, its sweep, its purge

Scope = Literal["reads", "statement", "transaction"]
"""What is done on a connection: single reads, one statement that writes, or a transaction."""

_NO_ANSWER = ("08", "57P")
"""How SQLSTATEs begin if the connection failed, or the server is shutting down or starting."""

_T = TypeVar("_T")

_LOSSES = "eventmesh_losses"  # how many there were when a connection was made

_ANSWER_TIMEOUT = 40.0  # seconds for statements of our own, some of which wait for a lock


class Database:
    """The database of one service, as one process uses it.

    `connections` is how many transactions handlers may need at a time. A few more are kept for
    EventMesh itself. A connection is opened when it is needed.
    """

    def __init__(self, url: str, *, service: str, connections: int = 0) -> None:
        self.service = service
        self._given_url = url
        self.url = parse_url(url, service)
        self.dialect = DIALECTS[self.url.get_backend_name()]
        with self.translated():  # a SQLite file's folder is made
            self.engine = self._make_engine(self.url, connections)
            self._queue_engine = self.dialect.make_queue_engine(
                self.url,
                self.variable,
                _CONNECT_TIMEOUT,
                _engine_options(kept=_QUEUE_CONNECTIONS, most=_QUEUE_CONNECTIONS),
            )
        unit_of_work.guard(self.engine.sync_engine)
        self.losses = 0
        """How many connections were found to be lost. After one, the next connection may lead to
        another server than before, even if no statement fails."""
        for engine in self._engines():
            event.listen(engine.sync_engine.pool, "invalidate", self._count_loss)
        self.time = DatabaseTime()
        self.notifier = Notifier(self.reading, can_notify=self.dialect.can_notify)

    def __repr__(self) -> str:
        return f"Database({self.service!r}, {self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The URL for people and logs, without its secrets."""
        return redact(self._given_url)

    def _shown_error(self, error: BaseException) -> str:
        return redact_error(first_line(error), self._given_url)

    @property
    def variable(self) -> str:
        """The environment variable that names this database."""
        return f"EVENTMESH_{self.service.upper()}_DATABASE_URL"

    def _count_loss(self, _connection: object, _record: object, error: object) -> None:
        if isinstance(error, Exception):  # else we, or a cancellation, invalidated it
            self.losses += 1

    async def connect(self, *, largest: int = 0) -> None:
        """Check that the database can be used. Unreachable, with what to do about it, when it does
        not answer; UsageError for options that are wrong, and for a server that does not accept
        messages of `largest` bytes or is too old."""
        try:
            async with self.connection() as connection:
                await connection.execute(text("SELECT 1"))
                await self.dialect.check_server(connection, largest)
        except Unreachable as error:
            # The text says it all; a program of the user's shows no chain of driver errors.
            raise error from None
        except (DBAPIError, InvalidRequestError, OverflowError, TypeError, ValueError) as error:
            # Drivers raise these for odd options; the statements themselves are not wrong.
            raise UsageError(
                f"{self.variable} cannot be used: {self._shown_error(error)}. Write it as "
                f"{EXAMPLES}."
            ) from None

    async def close(self) -> None:
        """Close all connections."""
        await self.notifier.close()
        for engine in self._engines():
            await engine.dispose()

    async def abandon(self) -> None:
        """Give up connections whose event loop is closed. Those to a server cannot be closed in
        another loop: the server learns it when they are garbage collected."""
        if self.dialect.is_file:
            await self.engine.dispose()

    def _engines(self) -> list[AsyncEngine]:
        return [self.engine] + ([] if self._queue_engine is None else [self._queue_engine])

    def unit_of_work(self, sender: Sender) -> UnitOfWork:
        """A transaction for handlers, with the messages that they publish."""
        return UnitOfWork(self.engine, sender, self.translated)

    @asynccontextmanager
    async def connection(
        self, *, within: float | None = _ANSWER_TIMEOUT
    ) -> AsyncIterator[AsyncConnection]:
        """A connection in a transaction that is committed on leaving. Unreachable also when the
        block takes longer than `within` seconds."""
        with self.own_statements():
            async with asyncio.timeout(within), self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for single reads, which take no lock that a writer has to wait for."""
        with self.own_statements():
            async with asyncio.timeout(_ANSWER_TIMEOUT), self.engine.connect() as connection:
                yield await connection.execution_options(**self.dialect.reading_options)

    async def transact(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` returns, on a connection as of `connection`."""
        return await self._once(self._transact, work)

    def _transact(self, work: Callable[[Connection], _T]) -> _T:
        with self.engine.sync_engine.begin() as connection:
            return work(connection)

    async def read(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` returns, on a connection as of `reading`."""
        return await self._once(self._read, work)

    def _read(self, work: Callable[[Connection], _T]) -> _T:
        with self.engine.sync_engine.connect() as connection:
            connection.execution_options(**self.dialect.reading_options)
            return work(connection)

    async def _once(
        self, execute: Callable[[Callable[[Connection], _T]], _T], work: Callable[[Connection], _T]
    ) -> _T:
        with self.own_statements():
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                return await greenlet_spawn(execute, work)

    @asynccontextmanager
    async def queue(self, scope: Scope = "transaction") -> AsyncIterator[AsyncConnection]:
        """As `connection`, or for reads as `reading`, for tables that are empty now and may have a
        million rows in a moment. A crash of the server may undo what was committed here, so it must
        be harmless to do it again."""
        if self._queue_engine is None:
            async with self.reading() if scope == "reads" else self.connection() as connection:
                yield connection
            return
        with self.own_statements():
            async with asyncio.timeout(_ANSWER_TIMEOUT), self._queue_engine.connect() as connection:
                await connection.run_sync(self._begin_on_queue, scope)
                yield connection
                await connection.commit()

    async def read_queue(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` returns, which only reads, on a connection as of `queue`."""
        if self._queue_engine is None:
            return await self.read(work)
        return await self._once(partial(self._on_queue, "reads"), work)

    async def write_to_queue(self, work: Callable[[Connection], _T]) -> _T:
        """What `work` returns, which executes one statement, on a connection as of `queue`."""
        if self._queue_engine is None:
            return await self.transact(work)
        return await self._once(partial(self._on_queue, "statement"), work)

    def _on_queue(self, scope: Scope, work: Callable[[Connection], _T]) -> _T:
        assert self._queue_engine is not None  # noqa: S101  # checked by both callers
        with self._queue_engine.sync_engine.connect() as connection:
            self._begin_on_queue(connection, scope)
            result = work(connection)
            connection.commit()
            return result

    def _begin_on_queue(self, connection: Connection, scope: Scope) -> None:
        # Connect anew if a connection was lost since this one was made: SQLAlchemy does so in the
        # pool of the lost one only, and the next may lead to another server.
        if connection.info.setdefault(_LOSSES, self.losses) != self.losses:
            connection.invalidate()
            connection.info[_LOSSES] = self.losses
        is_set = self.dialect.keeps_queue_settings(connection)
        if is_set and scope != "transaction":  # no BEGIN, no COMMIT
            connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.begin()
        if not is_set and self.dialect.queue_settings is not None:
            connection.execute(self.dialect.queue_settings)

    @asynccontextmanager
    async def maintenance(self) -> AsyncIterator[AsyncConnection]:
        """A connection to the server, outside of a transaction, whether the service's database is
        there or not."""
        url = self.url.set(database=self.dialect.maintenance_database)
        engine = self._make_engine(url, connections=0)
        try:
            with self.own_statements():
                async with engine.connect() as connection:
                    yield await connection.execution_options(isolation_level="AUTOCOMMIT")
        finally:
            await engine.dispose()

    def _make_engine(self, url: URL, connections: int) -> AsyncEngine:
        most = connections + _SPARE_CONNECTIONS
        options = _engine_options(kept=_KEPT_CONNECTIONS, most=most)
        return self.dialect.make_engine(url, self.variable, _CONNECT_TIMEOUT, options)

    def own_statements(self) -> AbstractContextManager[None]:
        """As `translated`, also for errors after which EventMesh's own statements are repeated, and
        for rights that these lack: a worker then waits for them as for a server."""
        return self.translated((*REPEATABLE, NO_RIGHT))

    @contextmanager
    def translated(self, also: Collection[str] = ()) -> Iterator[None]:
        """Raise Unreachable instead of the errors of a lost or absent database, and of those with
        the SQLSTATEs in `also`."""
        try:
            yield
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            if isinstance(error, SQLAlchemyError) and not (
                connection_lost(error)
                or isinstance(error, NoConnectionFree)
                or (isinstance(error, DBAPIError) and sqlstate(error) in also)
            ):
                raise
            state = sqlstate(error) if isinstance(error, DBAPIError) else ""
            what, advice = self._what_to_do(error, state)
            driver_error = error.orig if isinstance(error, DBAPIError) else error
            is_about_driver = self.dialect.is_about_driver(driver_error)
            shown = "the connection was lost" if is_about_driver else self._shown_error(error)
            raise Unreachable(
                f"The database of service {self.service!r} ({self.shown_url}) {what}: "
                f"{shown}. {advice}"
            ) from error

    def _what_to_do(self, error: BaseException, state: str) -> tuple[str, str]:
        """What a database with this error and SQLSTATE does, and what to do about it, in words."""
        unusable, correction = "cannot be used", f"correct {self.variable}."
        if self.dialect.is_file:
            return unusable, (
                f"See that this user may read and write the file and its folder, and that the disk "
                f"has space; or {correction}"
            )
        if state == "3D000":
            make = f"Make it with `eventmesh db upgrade --create {self.service}`"
            return unusable, f"{make}, or {correction}"
        if is_of_certificate(error):
            return "does not answer", (
                f"Its certificate is not accepted: correct the certificate authority or the host "
                f"in {self.variable}."
            )
        if state.startswith("28"):
            login = f"Correct the user or the password in {self.variable}."
            return "refuses the login", login
        if state == NO_RIGHT:
            return unusable, (
                f"Grant the user in {self.variable} the rights that it lacks; `eventmesh doctor` "
                f"lists them."
            )
        if state and not state.startswith(_NO_ANSWER):
            return unusable, f"Repair that on its server, or {correction}"
        return "does not answer", f"Start it, or {correction}"


def _engine_options(*, kept: int, most: int) -> dict[str, Any]:
    return {
        "pool_size": kept,
        "max_overflow": most - kept,
        # pydantic's, because it keeps integers of any size.
        "json_serializer": lambda value: to_json(value).decode(),
        "json_deserializer": from_json,
    }
