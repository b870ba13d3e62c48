"""Waiting until a started server answers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

START_TIMEOUT = 150.0
"""Seconds within which a started server answers."""

GREETING_TIMEOUT = 5.0
"""Seconds that one attempt to talk to a server may take."""

POLL_INTERVAL = 0.05


class Unavailable(Exception):
    """A server cannot be had in this way; the message says why."""


class EndedEarly(Unavailable):
    """The server exited before it answered."""


class Refused(Exception):
    """The server answers, but does not accept clients yet."""


def wait_for_version(greeting: Callable[[], Awaitable[str]], *checks: Callable[[], None]) -> str:
    """The version that the server reports, once it answers; raises as `wait_until_served`."""
    said: list[str] = []

    async def greet() -> str | None:
        version, refusal = await _greeted(greeting)
        said.append(version)
        return refusal

    wait_until_served(lambda: asyncio.run(greet()), *checks)
    return said[-1]


def wait_until_served(refusal: Callable[[], str | None], *checks: Callable[[], None]) -> None:
    """Wait until `refusal` returns None; Unavailable after START_TIMEOUT.

    The checks run after each refusal and may raise, such as EndedEarly for a server that exited.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while (reason := refusal()) is not None:
        for check in checks:
            check()
        if time.monotonic() > deadline:
            raise Unavailable(f"no answer within {START_TIMEOUT:.0f} s: {reason}")
        time.sleep(POLL_INTERVAL)


def refused_connection(port: int) -> str | None:
    """Why a connection to this local port fails; None if it is accepted."""
    try:
        with socket.create_connection(("127.0.0.1", port), GREETING_TIMEOUT):
            return None
    except OSError as error:
        return one_line(error)


def one_line(said: object) -> str:
    """The text on one line that is not empty."""
    return " ".join(str(said).split()) or repr(said)


async def _greeted(greeting: Callable[[], Awaitable[str]]) -> tuple[str, str | None]:
    """The version, or the reason why the server does not accept clients yet."""
    try:
        async with asyncio.timeout(GREETING_TIMEOUT):
            return await greeting(), None
    except (OSError, Refused) as error:
        return "", one_line(error)
