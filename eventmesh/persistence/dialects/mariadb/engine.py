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

# So that a handler's statements do what they do on other databases: an UPDATE reads the old values
# of its row, a value that does not fit its column is an error, and new tables are transactional.
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
    """An engine whose isolation level is READ COMMITTED, as on PostgreSQL: with MariaDB's default,
    a group would read its rows as they were when it began."""
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
    event.listen(engine.sync_engine, "connect", _apply_settings)
    event.listen(engine.sync_engine, "handle_error", _mark_disconnect)
    return engine


def error_code(error: BaseException | None) -> int:
    """The number of an error of the driver's; 0 for any other."""
    code = error.args[0] if error is not None and error.args else 0
    return code if isinstance(code, int) else 0


async def _connect(warning: ExposureWarning, **options: Any) -> Any:
    """A connection that breaks when its other end falls silent, and refuses statements that are too
    large for the server."""
    import asyncmy
    from asyncmy.cursors import Cursor

    largest = 0

    class OurCursor(Cursor):
        async def _query(self, q: str | bytes) -> Any:
            # The server would close the connection, which would look like a lost database.
            if largest and _bytes_in(q, largest) >= largest:
                raise asyncmy.errors.DataError(
                    _TOO_LARGE, f"the statement is larger than max_allowed_packet ({largest} bytes)"
                )
            return await super()._query(q)  # type: ignore[misc]  # what the driver calls itself

        async def _show_warnings(self, conn: Any) -> None:
            """Skipped: each duplicate in the inbox is a warning, which the driver would fetch and
            log."""

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
    """The number of bytes, or some smaller number where it is surely less than `most`."""
    if isinstance(statement, bytes) or len(statement) * 4 < most:
        return len(statement)
    return len(statement.encode(errors="surrogateescape"))  # the driver has bytes in texts


def _apply_settings(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(_SETTINGS)
    cursor.close()


def _mark_disconnect(context: ExceptionContext) -> None:
    """Tell SQLAlchemy of errors with which the server closes the connection."""
    if error_code(context.original_exception) in _ENDS_CONNECTION:
        context.is_disconnect = True
