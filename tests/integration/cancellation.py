"""Requests that are cancelled: while their server is silent, with the request that follows; or
after any number of turns of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from typing import Any

from tests.support.proxy import Direction, Proxy

TURNS = 50
"""Turns of the event loop that the second request gets to send what it can while the server is
still silent."""


async def request_after_a_cancelled_one(
    proxy: Proxy,
    after: int,
    direction: Direction,
    cancelled: Coroutine[Any, Any, object],
    following: Coroutine[Any, Any, object],
) -> bool:
    """Let the server fall silent after so many bytes in this direction, cancel the first request,
    and check that the second completes. Returns whether the first was done before the silence."""
    async with proxy.silent_after(after, direction) as silent:
        first = asyncio.ensure_future(cancelled)
        silenced = asyncio.ensure_future(silent.wait())
        await asyncio.wait({first, silenced}, return_when=asyncio.FIRST_COMPLETED)
        silenced.cancel()
        was_done = first.done()
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        assert was_done or first.cancelled(), (
            "the cancelled request did not end with CancelledError"
        )
        second = asyncio.ensure_future(following)
        for _ in range(TURNS):
            await asyncio.sleep(0)
    await second
    return was_done


def growing_numbers(*, every_position: bool) -> Iterator[int]:
    """Numbers of turns of the event loop: first every number, later fewer and fewer."""
    turns = 0
    while True:
        yield turns
        turns += 1 + turns // (100 if every_position else 20)


async def run_turns(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
