"""TCP connections that break when their other end falls silent: a machine that lost its power, a
network that drops what it should carry. TCP alone would wait for up to a quarter of an hour."""

from __future__ import annotations

import socket
from ipaddress import ip_address

SILENCE = 20
"""Seconds after which an end that acknowledges nothing counts as gone. The kernel of a living
server acknowledges whatever a statement takes, so a slow statement is not cut off."""

IDLE = 10
"""Seconds without traffic before the first probe."""

INTERVAL = 5
"""Seconds between two probes."""

PROBES = (SILENCE - IDLE) // INTERVAL
"""How many probes without an answer end the connection."""


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
        ("TCP_KEEPIDLE", IDLE),
        ("TCP_KEEPINTVL", INTERVAL),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", SILENCE * 1000),
    ):
        number = getattr(socket, option, None)  # not every system has each of them
        if number is not None:
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
