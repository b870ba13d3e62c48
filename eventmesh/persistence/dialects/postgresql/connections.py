"""Connections to PostgreSQL that each end gives up when the other one falls silent."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from eventmesh.persistence.dialects import tcp
from eventmesh.persistence.dialects.postgresql.pooling import Pooling, PoolMode, detect_pooling

_SERVER_SETTINGS = {
    "tcp_keepalives_idle": tcp.IDLE,
    "tcp_keepalives_interval": tcp.INTERVAL,
    "tcp_keepalives_count": tcp.PROBES,
    "tcp_user_timeout": tcp.SILENCE * 1000,
}
"""The server watches us by the same times. If our machine lost its power in the middle of a
transaction, the server would otherwise keep its locks for two hours, and whoever is given its
messages would wait for them. These are not start-up parameters, which pgbouncer would refuse."""

_COMMIT = "COMMIT;"
"""What asyncpg executes for the end of a transaction."""

DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # raised between the server's last answer and the end
)
"""What the driver raises for a connection that is used without SQLAlchemy."""


_ENDED_DURING_TLS = "unexpected connection_lost() call"
"""What asyncpg says of a connection that ends before it is encrypted."""


def is_about_asyncpg(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, only tells in which state asyncpg was when its
    connection ended, such as "cannot switch to state 12; another operation (2) is in progress"."""
    while error is not None:
        if isinstance(error, asyncpg.InternalClientError) or str(error) == _ENDED_DURING_TLS:
            return True
        error = error.__cause__
    return False


async def connect(
    *,
    pool_mode: PoolMode | None = None,
    session_settings: Mapping[str, str] | None = None,
    **options: Any,
) -> WatchedConnection:
    """A connection by asyncpg, watched by both ends. Its errors here are translated by SQLAlchemy;
    those of a listener are not. It has the `session_settings` where `has_session_settings`."""
    connection: WatchedConnection
    connection = await asyncpg.connect(**options, connection_class=WatchedConnection)
    # What the URL calls a pooler is one, whatever numbers it sends.
    own = session_settings if pool_mode is None and session_settings else {}
    setting = _setting({**_SERVER_SETTINGS, **own}, connection.get_server_pid())
    try:
        async with asyncio.timeout(options.get("timeout")):
            is_direct = await connection.execute(setting) == "SELECT 1"
            connection.has_session_settings = is_direct and bool(own)
            connection.pooling = await detect_pooling(connection, is_direct, pool_mode)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _setting(settings: Mapping[str, object], pid: int) -> str:
    """Sets these in a session that is ours alone, whose server process is `pid`. A pooler lends its
    server connections to others, too, who would get these settings, and it watches those
    connections itself."""
    each = (f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    return f"SELECT {', '.join(each)} WHERE pg_backend_pid() = {pid}"  # constants


class WatchedConnection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """A connection that breaks when its other end falls silent."""

    pooling = Pooling.SESSION
    """For how long its server connection is ours."""
    has_session_settings = False
    """Whether it was given settings that last until it is closed."""

    def __init__(self, protocol: Any, transport: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(protocol, transport, *arguments, **options)
        self.tls: ssl.SSLContext | None = transport.get_extra_info("sslcontext")
        """By what its TLS was made; None where it is not encrypted."""
        connected = transport.get_extra_info("socket")
        try:
            self.is_local = tcp.is_local(connected)
            """Whether its other end is on this machine."""
            tcp.watch(connected)
        except OSError:  # it is lost already, which the driver has not noticed yet
            self.terminate()
            raise

    async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
        """As asyncpg's own. InFailedSQLTransactionError for a commit that was none: after an error
        that somebody has caught, PostgreSQL rolls back, and says so only here."""
        status: str = await super().execute(query, *arguments, **options)
        if status == "ROLLBACK" and query == _COMMIT:
            raise asyncpg.InFailedSQLTransactionError(
                "the transaction was rolled back, because a statement in it had failed"
            )
        return status
