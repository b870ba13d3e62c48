"""MariaDB: what it needs to keep the promises that are kept on PostgreSQL.

Two habits of its server matter. It has statements, such as CREATE TABLE, that commit the
transaction around them. And at a deadlock it rolls back the whole transaction and continues in a
new one, so that a handler which catches the error would commit half of what it did. So each of our
transactions begins with a savepoint, and must still have it at its commit:

    SAVEPOINT eventmesh_transaction      the transaction begins
    ...                                  the handler's statements
    RELEASE SAVEPOINT ...                fails if this is another transaction than at first

MySQL cannot keep all promises: it has no INSERT … RETURNING, by which one statement enters a
group's messages into the inbox and says which of them are new.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, FromClause, Insert, Table, event, text
from sqlalchemy.dialects.mysql import insert
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from eventmesh.errors import Conflict, UsageError
from eventmesh.persistence.dialects.base import Dialect, JoinedProof
from eventmesh.persistence.dialects.mariadb import engine
from eventmesh.persistence.dialects.mariadb import url as urls

_OLDEST = (10, 11)
_PACKET_SPARE = 64 * 1024  # bytes of a statement beside a message's data

_LOCK = "CONCAT('eventmesh ', SHA1(DATABASE()))"  # names of locks are the whole server's
_TAKE_LOCK = text(f"SELECT GET_LOCK({_LOCK}, 31536000)")  # within a year
_RELEASE_LOCK = text(f"SELECT RELEASE_LOCK({_LOCK})")

# PostgreSQL's SQLSTATEs for what MariaDB gives numbers of its own.
_STATES: Mapping[int, str] = MappingProxyType(
    {
        1020: "40001",  # changed since it was read
        1021: "53100",  # disk full
        1040: "53300",  # too many connections
        1044: "28000",  # no right to this database
        1045: "28000",  # wrong user or password
        1049: "3D000",  # unknown database
        1053: "57P01",  # shutting down
        1114: "53100",  # table full, for want of disk
        1129: "08004",  # host blocked
        1130: "28000",  # host not allowed
        1142: "42501",  # no right to this table
        1143: "42501",  # no right to this column
        1146: "42P01",  # no such table
        1158: "08006",
        1159: "08006",
        1160: "08006",
        1161: "08006",
        1176: "55P03",  # an index that a migration is just making anew
        1203: "53300",
        1205: "55P03",  # lock wait timeout
        1213: "40P01",  # deadlock
        1226: "53300",
        1792: "25006",  # read only
        1836: "25006",
        1927: "57P01",  # killed
        2003: "08001",
        2006: "08006",
        2013: "08006",
    }
)
_READ_ONLY = 1290  # of a server that runs with --read-only; other options have the same number
_NO_SAVEPOINT = 1305

_SAVEPOINT = "eventmesh_transaction"
_RELEASE = text(f"RELEASE SAVEPOINT {_SAVEPOINT}")


class MariaDB(Dialect):
    name = "mariadb"
    driver = "mariadb+asyncmy"
    # Its reads take no locks, and setting the isolation level would cost statements.
    reading_options = MappingProxyType({})
    can_cancel_delayed = False
    can_order_keys = False  # it has no lock that ends with a transaction
    ends_transaction = re.compile(
        r"(?:\s|/\*.*?\*/|--[^\n]*\n|#[^\n]*\n)*"
        r"(?:ALTER|CREATE(?!\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|RENAME|TRUNCATE|GRANT|REVOKE|LOCK"
        r"|UNLOCK|START|BEGIN|COMMIT|ROLLBACK(?!\s+(?:WORK\s+)?TO)|XA|FLUSH|OPTIMIZE|REPAIR"
        r"|ANALYZE\s+TABLE|CHECK\s+TABLE|SET\s+(?:SESSION\s+|@@(?:SESSION\.)?)?AUTOCOMMIT)\b",
        re.IGNORECASE | re.DOTALL,
    )

    def normal_url(self, url: URL, variable: str) -> URL:
        urls.tls(url, variable)  # refuses what is not understood
        return url

    def differ(self, ours: URL, theirs: URL) -> bool:
        # Names of either case may be the same database.
        there = (theirs.database or "").casefold()
        return bool(there) and (ours.database or "").casefold() != there

    def sqlstate(self, error: BaseException | None) -> str:
        code = engine.error_code(error)
        if code == _READ_ONLY and "read" in str(error):
            return "25006"
        return _STATES.get(code, "")

    def make_engine(
        self, url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
    ) -> AsyncEngine:
        return engine.make_engine(url, variable, connect_timeout, options)

    async def check_server(self, connection: AsyncConnection, largest: int) -> None:
        version = connection.dialect.server_version_info or ()
        if tuple(version) < _OLDEST:
            told = ".".join(map(str, version))
            raise UsageError(f"The server is MariaDB {told}; EventMesh needs 10.11 or later.")
        settings = text("SELECT @@log_bin, @@binlog_format, @@max_allowed_packet")
        logs, log_format, packet = (await connection.execute(settings)).one()
        if logs and log_format == "STATEMENT":
            raise UsageError(
                "The server writes its binary log by statement, which takes no transactions that "
                "read what is committed. Set binlog_format to MIXED or ROW."
            )
        needed = 2 * largest + _PACKET_SPARE  # for each byte may have to be escaped
        if packet < needed:
            raise UsageError(
                f"The server takes statements of {packet} bytes, and a message of {largest} bytes "
                f"may need {needed}. Raise max_allowed_packet, or lower "
                f"EVENTMESH_MAX_MESSAGE_BYTES."
            )

    def after_begin(self, connection: Connection) -> None:
        _mark(connection)

    def prove(self, connection: Connection, *, is_proved: bool) -> None:
        with _found_out("before the handler did: at a deadlock whose error the handler caught"):
            connection.execute(_RELEASE)

    def watch_joined(self, session: Session, clause: FromClause) -> JoinedProof:
        return _MarkedTransaction(session, clause)

    @asynccontextmanager
    async def migration_lock(self, connection: AsyncConnection) -> AsyncIterator[None]:
        await connection.execute(_TAKE_LOCK)
        try:
            yield
            await connection.exec_driver_sql("COMMIT")  # before others look
            await connection.execute(_RELEASE_LOCK)
        except BaseException:
            await connection.invalidate()  # which releases the lock, whatever state it is in
            raise

    async def create_database(self, connection: AsyncConnection, name: str) -> None:
        quoted = connection.dialect.identifier_preparer.quote(name)
        await connection.exec_driver_sql(f"CREATE DATABASE IF NOT EXISTS {quoted}")

    def insert_absent(self, table: Table) -> Insert:
        # Values must be known to fit: IGNORE would cut them.
        return insert(table).prefix_with("IGNORE")

    def upsert(
        self, table: Table, keys: Sequence[str], first: Mapping[str, Any], again: Mapping[str, Any]
    ) -> Insert:
        return insert(table).values(first).on_duplicate_key_update(again)

    def outbox_writers(self, connection: Connection) -> list[str]:
        return ["unknown"]  # it tells nobody which there are, so there may always be one


class _MarkedTransaction(JoinedProof):
    """Marks the transactions of an application's session when they begin, or before their next
    statement where they have begun already, and proves them before they are committed.

    If the application swallowed a deadlock's error, half of its state would be committed, and all
    messages.
    """

    def __init__(self, session: Session, clause: FromClause) -> None:
        # The session is not kept: it holds its listeners, and two objects that hold each other are
        # freed late.
        self._clause = clause
        self._is_wanted = self._is_armed = False
        self._marked: Connection | None = None
        event.listen(session, "after_begin", self._after_begin)
        event.listen(session, "do_orm_execute", self._before_statement)
        event.listen(session, "before_flush", self._before_flush)
        event.listen(session, "after_transaction_end", self._after_end)

    def want(self) -> None:
        self._is_wanted = True

    def arm(self) -> None:
        self._is_armed = True

    def _after_begin(
        self, _session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        if not transaction.nested and connection.dialect.name in _NAMES:
            self._mark(connection)

    def _before_statement(self, state: ORMExecuteState) -> None:
        self._catch_up(state.session)

    def _before_flush(self, session: Session, *_: object) -> None:
        self._catch_up(session)

    def _catch_up(self, session: Session) -> None:
        # A mark in a savepoint would be gone with that.
        if self._is_wanted and self._marked is None and not session.in_nested_transaction():
            self._mark(session.connection(bind_arguments={"clause": self._clause}))

    def _mark(self, connection: Connection) -> None:
        if self._is_wanted and self._marked is None:
            _mark(connection)
            self._marked = connection
            # Not the session's event: with a savepoint open, that comes before the savepoint's end.
            event.listen(connection, "commit", self._before_commit)

    def _before_commit(self, connection: Connection) -> None:
        if not self._is_armed:
            return
        try:
            with _found_out(
                "before the application did, and nothing is left of its state and messages up to "
                "then; those since then are rolled back with it. Do it all again. It was at a "
                "deadlock whose error the application caught"
            ):
                connection.execute(_RELEASE)
        except BaseException:
            # SQLAlchemy takes a commit that failed for an end, and would lend the connection, with
            # its transaction open, to somebody who commits.
            connection.invalidate()
            raise

    def _after_end(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        if self._marked is not None:
            event.remove(self._marked, "commit", self._before_commit)
        self._is_wanted, self._is_armed, self._marked = False, False, None


_NAMES = (MariaDB.name, "mysql")
"""The second is what applications often call it."""


def _mark(connection: Connection) -> None:
    connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")


@contextmanager
def _found_out(how: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if engine.error_code(error.orig) != _NO_SAVEPOINT:
            raise
        raise Conflict(
            f"the database ended the transaction {how}, or in a procedure that commits"
        ) from error
