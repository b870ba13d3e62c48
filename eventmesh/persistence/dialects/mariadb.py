"""What MariaDB needs to keep the promises that are kept on PostgreSQL.

MySQL cannot keep them all: it has no INSERT … RETURNING, by which one statement enters a group's
messages into the inbox and tells which of them are new.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, FromClause, Select, Table, event, text
from sqlalchemy.dialects.mysql import Insert, insert
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventmesh.errors import Conflict, UsageError
from eventmesh.persistence.dialects import mariadb_url
from eventmesh.persistence.dialects.exposure import ExposureWarning

NAME = "mariadb"
"""SQLAlchemy's name for it."""

TABLE: Mapping[str, Any] = MappingProxyType(
    {
        "mariadb_engine": "InnoDB",
        "mariadb_row_format": "DYNAMIC",  # else two keys of 255 characters are too long
        "mariadb_charset": "utf8mb4",
        # Ids and keys are the same when they are letter by letter: case, accents, trailing spaces.
        "mariadb_collate": "utf8mb4_nopad_bin",
    }
)
"""What is said of each of our tables."""

_OLDEST = (10, 11)
_LOCK_TIMEOUT = 30  # seconds that a statement waits for another transaction's row
_PACKET_SPARE = 64 * 1024  # bytes of a statement beside a message's data

# A handler's statements mean what they mean elsewhere: an UPDATE reads the old values of its row,
# what does not fit a column is refused, and a table that is made takes part in transactions.
_SETTINGS = f"""SET SESSION
    sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES', 'SIMULTANEOUS_ASSIGNMENT'),
    default_storage_engine = InnoDB,
    innodb_lock_wait_timeout = {_LOCK_TIMEOUT},
    wait_timeout = 28800"""

_TURN = "CONCAT('eventmesh ', SHA1(DATABASE()))"  # names of locks are the whole server's
_TAKE_TURN = text(f"SELECT GET_LOCK({_TURN}, 31536000)")  # a year
_END_TURN = text(f"SELECT RELEASE_LOCK({_TURN})")

# PostgreSQL's words for what MariaDB gives numbers of its own.
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
_ENDS_CONNECTION = (1053, 1158, 1159, 1160, 1161, 1927)
_READ_ONLY = 1290  # of a server that runs with --read-only; other options have the same number
_NO_SAVEPOINT = 1305
_TOO_LARGE = 1153

_SAVEPOINT = "eventmesh_transaction"
_RELEASE = text(f"RELEASE SAVEPOINT {_SAVEPOINT}")
_GUARDED = "eventmesh_guarded"
_ENDS_TRANSACTION = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n|#[^\n]*\n)*"
    r"(?:ALTER|CREATE(?!\s+TEMPORARY)|DROP(?!\s+TEMPORARY)|RENAME|TRUNCATE|GRANT|REVOKE|LOCK|UNLOCK"
    r"|START|BEGIN|COMMIT|ROLLBACK(?!\s+(?:WORK\s+)?TO)|XA|FLUSH|OPTIMIZE|REPAIR"
    r"|ANALYZE\s+TABLE|CHECK\s+TABLE|SET\s+(?:SESSION\s+|@@(?:SESSION\.)?)?AUTOCOMMIT)\b",
    re.IGNORECASE | re.DOTALL,
)


def make_engine(
    url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
) -> AsyncEngine:
    """An engine whose transactions read what is committed, as on PostgreSQL: with MariaDB's own
    default, a group would read its rows as they were when it began."""
    warning = ExposureWarning(
        variable,
        accepted=mariadb_url.is_off(url),
        write="ssl_ca=FILE to its URL, or ssl=false",
    )
    arguments = {
        "connect_timeout": connect_timeout,
        "charset": "utf8mb4",
        "async_creator_fn": partial(_connect, warning),
        **mariadb_url.arguments(url, variable),
    }
    try:
        engine = create_async_engine(
            url.set(query={}), connect_args=arguments, isolation_level="READ COMMITTED", **options
        )
    except ModuleNotFoundError as error:
        raise UsageError(
            f"A MariaDB database needs a driver that is not installed ({error}). Install it with "
            f"`pip install 'eventmesh[mariadb]'`."
        ) from None
    except ValueError as error:
        raise UsageError(f"An option of the MariaDB URL cannot be used: {error}.") from None
    event.listen(engine.sync_engine, "connect", _settle)
    event.listen(engine.sync_engine, "handle_error", _judge)
    event.listen(engine.sync_engine, "before_cursor_execute", _refuse_end)
    return engine


async def check(connection: AsyncConnection, largest: int) -> None:
    """UsageError for a server on which the promises do not hold, or that does not take messages of
    `largest` bytes."""
    version = connection.dialect.server_version_info or ()
    if tuple(version) < _OLDEST:
        told = ".".join(map(str, version))
        raise UsageError(f"The server is MariaDB {told}; EventMesh needs 10.11 or later.")
    row = await connection.execute(text("SELECT @@log_bin, @@binlog_format, @@max_allowed_packet"))
    logs, log_format, packet = row.one()
    if logs and log_format == "STATEMENT":
        raise UsageError(
            "The server writes its binary log by statement, which takes no transactions that read "
            "what is committed. Set binlog_format to MIXED or ROW."
        )
    needed = 2 * largest + _PACKET_SPARE  # for each byte may have to be escaped
    if packet < needed:
        raise UsageError(
            f"The server takes statements of {packet} bytes, and a message of {largest} bytes may "
            f"need {needed}. Raise max_allowed_packet, or lower EVENTMESH_MAX_MESSAGE_BYTES."
        )


def insert_new(table: Table) -> Insert:
    """Insert the rows that are not there; what it returns is of these only. An uncommitted row of
    another transaction is waited for. Values must be known to fit: IGNORE would cut them."""
    return insert(table).prefix_with("IGNORE")


def by_index(query: Select[Any], table: FromClause, index: str) -> Select[Any]:
    """Have MariaDB read the table by this index, however many rows its statistics, which follow
    slowly, say that there are."""
    return query.with_hint(table, f"FORCE INDEX ({index})", NAME)


def sqlstate(error: BaseException | None) -> str:
    """The SQLSTATE by which PostgreSQL says the same; empty for what need not be told apart."""
    code = _code(error)
    if code == _READ_ONLY and "read" in str(error):
        return "25006"
    return _STATES.get(code, "")


def begin(connection: Connection) -> None:
    """Mark the begin of a transaction that is not to be ended by anything but its `prove`."""
    connection.execution_options(**{_GUARDED: True})
    mark(connection)


def mark(connection: Connection) -> None:
    """Mark a transaction for `prove` or `prove_marked`, which can be done once."""
    connection.exec_driver_sql(f"SAVEPOINT {_SAVEPOINT}")


def prove(connection: Connection) -> None:
    """Conflict unless the transaction is still the one that began: MariaDB undoes all of it at a
    deadlock, and goes on in a new one when a handler has swallowed the error."""
    with _found_out("before the handler did: at a deadlock whose error the handler caught"):
        connection.execute(_RELEASE)


def prove_marked(connection: Connection) -> None:
    """The same for the transaction of an application."""
    with _found_out(
        "before the application did, and nothing is left of its state and messages up to then; "
        "those since then are rolled back with it. Do it all again. It was at a deadlock whose "
        "error the application caught"
    ):
        connection.execute(_RELEASE)


@contextmanager
def _found_out(how: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if _code(error.orig) != _NO_SAVEPOINT:
            raise
        raise Conflict(
            f"the database ended the transaction {how}, or in a procedure that commits"
        ) from error


@asynccontextmanager
async def turn(connection: AsyncConnection) -> AsyncIterator[None]:
    """Only one process is in here at a time, for each database. What it did is committed."""
    await connection.execute(_TAKE_TURN)
    try:
        yield
        await connection.exec_driver_sql("COMMIT")  # before others look
        await connection.execute(_END_TURN)
    except BaseException:
        await connection.invalidate()  # which ends the turn, whatever state it is in
        raise


async def _connect(warning: ExposureWarning, **options: Any) -> Any:
    """A connection that breaks when its other end falls silent."""
    import asyncmy
    from asyncmy.cursors import Cursor

    from eventmesh.persistence.dialects.silence import is_local, watch

    largest = 0

    class OurCursor(Cursor):
        async def _query(self, q: str | bytes) -> Any:
            # The server would answer by closing the connection, which looks like an end of its own.
            if largest and _bytes_in(q, largest) >= largest:
                raise asyncmy.errors.DataError(
                    _TOO_LARGE, f"the statement is larger than max_allowed_packet ({largest} bytes)"
                )
            return await super()._query(q)  # type: ignore[misc]  # what the driver calls itself

        async def _show_warnings(self, conn: Any) -> None:
            """Of which each duplicate in an inbox is one; the driver would fetch and log them."""

    connection: Any = await asyncmy.connect(cursor_cls=OurCursor, **options)
    try:
        connected = connection._transport.get_extra_info("socket")
        watch(connected)
        tls = connection._transport.get_extra_info("sslcontext")
        warning.look_at(tls, is_local=is_local(connected))
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT @@max_allowed_packet")
            [largest] = await cursor.fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _bytes_in(statement: str | bytes, most: int) -> int:
    """How many there are, but not exactly where they are surely fewer than `most`."""
    if isinstance(statement, bytes) or len(statement) * 4 < most:
        return len(statement)
    return len(statement.encode(errors="surrogateescape"))  # so the driver holds bytes in texts


def _settle(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(_SETTINGS)
    cursor.close()


def _judge(context: ExceptionContext) -> None:
    """Do not use a connection again that the server has closed with its answer."""
    if _code(context.original_exception) in _ENDS_CONNECTION:
        context.is_disconnect = True


def _refuse_end(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
    if _GUARDED in connection.get_execution_options() and _ENDS_TRANSACTION.match(statement):
        raise UsageError(
            f"MariaDB would commit what a handler has done so far, and its group's other messages, "
            f"at the statement {' '.join(statement.split()[:3])!r}. Do that outside handlers."
        )


def _code(error: BaseException | None) -> int:
    code = error.args[0] if error is not None and error.args else 0
    return code if isinstance(code, int) else 0
