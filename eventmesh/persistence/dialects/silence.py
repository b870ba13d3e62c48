"""Connections to PostgreSQL whose other end falls silent: a machine that lost its power, a network
that drops what it should carry. TCP alone would wait for up to a quarter of an hour."""

from __future__ import annotations

import asyncio
import socket
import ssl
from ipaddress import ip_address
from typing import Any

import asyncpg  # type: ignore[import-untyped]

from eventmesh.persistence.dialects.pooling import Lent, PoolMode, lent

SILENCE = 20
"""Seconds after which an end that acknowledges nothing counts as gone. The kernel of a living
server acknowledges whatever a statement takes, so that a slow one is not cut off."""

_IDLE, _INTERVAL = 10, 5  # seconds without traffic before the first probe, and between probes

_WATCHED_BY_SERVER = {
    "tcp_keepalives_idle": _IDLE,
    "tcp_keepalives_interval": _INTERVAL,
    "tcp_keepalives_count": (SILENCE - _IDLE) // _INTERVAL,
    "tcp_user_timeout": SILENCE * 1000,
}
"""The same for the other end. A machine that lost its power in the middle of a transaction would
else hold its rows for two hours, and who is given its messages would wait for them. No parameters
of the connection's start, which pgbouncer would refuse."""

_WATCH = "SELECT {} WHERE pg_backend_pid() = {{pid}}".format(
    ", ".join(
        f"set_config('{name}', '{value}', false)" for name, value in _WATCHED_BY_SERVER.items()
    )
)
"""Settings for a session that is ours alone. A pooler shares its connections to the server, so
others would get these settings, too, and it watches those connections itself."""


async def connect(*, pool_mode: PoolMode | None = None, **options: Any) -> WatchedConnection:
    """A connection to PostgreSQL that each end gives up when the other has been silent for SILENCE
    seconds. What asyncpg raises here SQLAlchemy translates; not so what a listener raises."""
    connection: WatchedConnection
    connection = await asyncpg.connect(**options, connection_class=WatchedConnection)
    try:
        async with asyncio.timeout(options.get("timeout")):
            told = await connection.execute(_WATCH.format(pid=connection.get_server_pid()))
            connection.lent = await lent(connection, told == "SELECT 1", pool_mode)
    except BaseException:
        connection.terminate()
        raise
    return connection


class WatchedConnection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    """A connection that breaks when its other end falls silent."""

    lent = Lent.SESSION
    """For how long its server connection is ours."""

    def __init__(self, protocol: Any, transport: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(protocol, transport, *arguments, **options)
        self.tls: ssl.SSLContext | None = transport.get_extra_info("sslcontext")
        """By what its TLS was made; None where it is not encrypted."""
        connected = transport.get_extra_info("socket")
        self.is_local = is_local(connected)
        """Whether its other end is on this machine."""
        watch(connected)


def is_local(connection: socket.socket) -> bool:
    """Whether the other end of this connection is on this machine."""
    if connection.family == getattr(socket, "AF_UNIX", None):
        return True
    ours, theirs = connection.getsockname()[0], connection.getpeername()[0]
    return bool(ours == theirs or ip_address(theirs.partition("%")[0]).is_loopback)


def watch(connection: socket.socket) -> None:
    """Let the kernel probe this connection, unless it is not a network connection."""
    if connection.family == getattr(socket, "AF_UNIX", None):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _IDLE),
        ("TCP_KEEPINTVL", _INTERVAL),
        ("TCP_KEEPCNT", (SILENCE - _IDLE) // _INTERVAL),
        ("TCP_USER_TIMEOUT", SILENCE * 1000),
    ):
        number = getattr(socket, option, None)  # not every system has each of them
        if number is not None:
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
