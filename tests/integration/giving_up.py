"""Somebody waits for a server that has fallen silent, and is cancelled; another one asks next."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from tests.support.proxy import Direction, Proxy

TURNS = 50
"""Of the event loop, in which who asks next says what it can while the server is silent."""


async def ask_while_another_gives_up(
    proxy: Proxy,
    after: int,
    direction: Direction,
    one: Coroutine[Any, Any, object],
    other: Coroutine[Any, Any, object],
) -> bool:
    """Cancel one when so many bytes have gone this way, and start the other, which must come to its
    end. Whether the first had come to its own before."""
    async with proxy.silent_after(after, direction) as silent:
        first = asyncio.ensure_future(one)
        hushed = asyncio.ensure_future(silent.wait())
        await asyncio.wait({first, hushed}, return_when=asyncio.FIRST_COMPLETED)
        hushed.cancel()
        was_done = first.done()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        assert was_done or first.cancelled(), "who was cancelled did not hear of it"
        second = asyncio.ensure_future(other)
        for _ in range(TURNS):
            await asyncio.sleep(0)
    await second
    return was_done
