"""Connections to PostgreSQL whose other end falls silent: a machine that lost its power, a network
that drops what it should carry. TCP alone would wait for up to a quarter of an hour."""

from __future__ import annotations

import socket
from typing import Any

import asyncpg  # type: ignore[import-untyped]

SILENCE = 20
"""Seconds after which an end that acknowledges nothing counts as gone. The kernel of a living
server acknowledges whatever a statement takes, so that a slow one is not cut off."""

_IDLE, _INTERVAL = 10, 5  # seconds without traffic before the first probe, and between probes

_WATCHED_BY_SERVER = (
    f"SET tcp_keepalives_idle = {_IDLE}; SET tcp_keepalives_interval = {_INTERVAL};"
    f" SET tcp_keepalives_count = {(SILENCE - _IDLE) // _INTERVAL};"
    f" SET tcp_user_timeout = {SILENCE * 1000}"
)
"""The same for the other end. A machine that lost its power in the middle of a transaction would
else hold its rows for two hours, and who is given its messages would wait for them. No parameters
of the connection's start, which pgbouncer would refuse."""


async def connect(**options: Any) -> Any:
    """A connection to PostgreSQL that each end gives up when the other has been silent for SILENCE
    seconds. What asyncpg raises here SQLAlchemy translates; not so what a listener raises."""
    connection = await asyncpg.connect(**options, connection_class=_WatchedConnection)
    try:
        await connection.execute(_WATCHED_BY_SERVER, timeout=options.get("timeout"))
    except BaseException:
        connection.terminate()
        raise
    return connection


class _WatchedConnection(asyncpg.Connection):  # type: ignore[misc]  # it has no types
    def __init__(self, protocol: Any, transport: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(protocol, transport, *arguments, **options)
        watch(transport.get_extra_info("socket"))


def watch(connection: socket.socket) -> None:
    """Let the kernel probe this connection, unless its other end is on this machine anyway."""
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
