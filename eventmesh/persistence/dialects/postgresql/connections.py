"""Connections to PostgreSQL that each end gives up when the other one falls silent."""

from __future__ import annotations

import asyncio
import ssl
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

_SET = "SELECT {} WHERE pg_backend_pid() = {{pid}}".format(
    ", ".join(f"set_config('{name}', '{value}', false)" for name, value in _SERVER_SETTINGS.items())
)
"""Sets them in a session that is ours alone. A pooler lends its server connections to others, too,
who would get these settings, and it watches those connections itself."""


DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # raised between the server's last answer and the end
)
"""What the driver raises for a connection that is used without SQLAlchemy."""


async def connect(*, pool_mode: PoolMode | None = None, **options: Any) -> WatchedConnection:
    """A connection by asyncpg, watched by both ends. Its errors here are translated by SQLAlchemy;
    those of a listener are not."""
    connection: WatchedConnection
    connection = await asyncpg.connect(**options, connection_class=WatchedConnection)
    try:
        async with asyncio.timeout(options.get("timeout")):
            answer = await connection.execute(_SET.format(pid=connection.get_server_pid()))
            is_direct = answer == "SELECT 1"
            connection.pooling = await detect_pooling(connection, is_direct, pool_mode)
    except BaseException:
        connection.terminate()
        raise
    return connection


class WatchedConnection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """A connection that breaks when its other end falls silent."""

    pooling = Pooling.SESSION
    """For how long its server connection is ours."""

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
