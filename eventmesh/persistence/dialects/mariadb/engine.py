"""The engine for MariaDB, and its connections."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventmesh.errors import UsageError
from eventmesh.persistence.dialects import tcp
from eventmesh.persistence.dialects.exposure import ExposureWarning
from eventmesh.persistence.dialects.mariadb import url as urls

_LOCK_TIMEOUT = 30  # seconds that a statement waits for another transaction's row

# A handler's statements mean what they mean elsewhere: an UPDATE reads the old values of its row,
# what does not fit a column is refused, and a table that is made takes part in transactions.
_SETTINGS = f"""SET SESSION
    sql_mode = CONCAT_WS(',', @@sql_mode, 'STRICT_ALL_TABLES', 'SIMULTANEOUS_ASSIGNMENT'),
    default_storage_engine = InnoDB,
    innodb_lock_wait_timeout = {_LOCK_TIMEOUT},
    wait_timeout = 28800"""

_ENDS_CONNECTION = (1053, 1158, 1159, 1160, 1161, 1927)
_TOO_LARGE = 1153


def make_engine(
    url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
) -> AsyncEngine:
    """An engine whose transactions read what is committed, as on PostgreSQL: with MariaDB's own
    default, a group would read its rows as they were when it began."""
    warning = ExposureWarning(
        variable,
        accepted=urls.is_off(url),
        write="ssl_ca=FILE to its URL, or ssl=false",
    )
    arguments = {
        "connect_timeout": connect_timeout,
        "charset": "utf8mb4",
        "async_creator_fn": partial(_connect, warning),
        **urls.arguments(url, variable),
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
    return engine


def error_code(error: BaseException | None) -> int:
    """The number of an error of the driver's; 0 for any other."""
    code = error.args[0] if error is not None and error.args else 0
    return code if isinstance(code, int) else 0


async def _connect(warning: ExposureWarning, **options: Any) -> Any:
    """A connection that breaks when its other end falls silent."""
    import asyncmy
    from asyncmy.cursors import Cursor

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
        tcp.watch(connected)
        tls = connection._transport.get_extra_info("sslcontext")
        warning.look_at(tls, is_local=tcp.is_local(connected))
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
    if error_code(context.original_exception) in _ENDS_CONNECTION:
        context.is_disconnect = True
