"""Waiting for a server that was started to serve us."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

START_PATIENCE = 60.0
"""Seconds within which a started server answers."""

GREETING_PATIENCE = 5.0
"""Seconds that one attempt to talk to a server may take."""

POLL_INTERVAL = 0.05


class Unavailable(Exception):
    """This way gives no server, for this reason."""


class EndedEarly(Unavailable):
    """The server ended before it answered."""


class Refused(Exception):
    """The server answers, and does not serve us yet."""


def wait_for_version(greeting: Callable[[], Awaitable[str]], *checks: Callable[[], None]) -> str:
    """The version that the server says of itself, once it answers; otherwise as
    `wait_until_served`."""
    said: list[str] = []

    async def greet() -> str | None:
        version, refusal = await _greeted(greeting)
        said.append(version)
        return refusal

    wait_until_served(lambda: asyncio.run(greet()), *checks)
    return said[-1]


def wait_until_served(refusal: Callable[[], str | None], *checks: Callable[[], None]) -> None:
    """Return once there is no refusal; Unavailable when it takes too long. After each refusal,
    the checks may raise: EndedEarly when there is nothing left to wait for."""
    deadline = time.monotonic() + START_PATIENCE
    while (reason := refusal()) is not None:
        for check in checks:
            check()
        if time.monotonic() > deadline:
            raise Unavailable(f"no answer within {START_PATIENCE:.0f} s: {reason}")
        time.sleep(POLL_INTERVAL)


def refused_connection(port: int) -> str | None:
    """Why nobody on this machine takes connections on the port; None when somebody does."""
    try:
        with socket.create_connection(("127.0.0.1", port), GREETING_PATIENCE):
            return None
    except OSError as error:
        return one_line(error)


def one_line(said: object) -> str:
    """What was said, on one line that is not empty."""
    return " ".join(str(said).split()) or repr(said)


async def _greeted(greeting: Callable[[], Awaitable[str]]) -> tuple[str, str | None]:
    """The version, or why the server does not serve us yet."""
    try:
        async with asyncio.timeout(GREETING_PATIENCE):
            return await greeting(), None
    except (OSError, Refused) as error:
        return "", one_line(error)
