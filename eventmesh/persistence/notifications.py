"""Being woken by the notifications of other processes, where the database has them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from eventmesh.errors import Unreachable
from eventmesh.persistence.database import Database
from eventmesh.persistence.notifier import CHANNEL

FIRST_WITHIN = 30.0
"""Seconds within which our own first notification must arrive; else none ever do."""


async def listen(database: Database, wake: Callable[[], None]) -> None:
    """Call `wake` when another process has notified, and when one may have, until the connection is
    lost: Unreachable.

    Returns if NOTIFY does not arrive, for example behind a transaction-pooling proxy.
    """
    from eventmesh.persistence.dialects.postgresql.connections import DRIVER_ERRORS

    lost, answered = asyncio.Event(), asyncio.Event()

    def ended(_connection: object) -> None:
        lost.set()
        answered.set()  # which it will never be, so it must not be waited for

    def notified(_connection: object, _pid: int, _channel: str, sender: str) -> None:
        answered.set()
        if sender != database.notifier.sender:
            wake()

    try:
        with database.translated():
            async with database.engine.connect() as connection:
                try:
                    raw: Any = (await connection.get_raw_connection()).driver_connection
                    if not raw.pooling.can_listen:
                        return
                    raw.add_termination_listener(ended)
                    await raw.add_listener(CHANNEL, notified)
                    await database.notifier.notify()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(FIRST_WITHIN):
                            await answered.wait()
                    if not answered.is_set():
                        return
                    wake()  # there may have been notifications before
                    await lost.wait()
                    raise ConnectionResetError("the connection that listens was lost")
                finally:  # nobody else must get it with its listener
                    await connection.invalidate(sys.exception())
    except DRIVER_ERRORS as error:
        raise Unreachable(f"{database.shown_url} cannot be listened to: {error}.") from error
