"""Telling the relays of other processes that messages wait, and hearing it from them: PostgreSQL's
NOTIFY. Nothing rests on it but time, for relays look by themselves as well."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from eventmesh.errors import Unreachable

if TYPE_CHECKING:
    from eventmesh.persistence.database import Database

CHANNEL = "eventmesh_outbox"

PAUSE = 0.005
"""Seconds between two notifications of one process: each of them stops all others that are being
committed in the database, for a moment."""

PATIENCE = 30.0
"""Seconds in which a first notification must come through."""

# In a transaction of its own, and one that does not wait for the disk: within the transactions that
# it is about, it would make them wait for one another.
_NOTIFY = text("SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, :sender)")


class Doorbell:
    """Rings for the relays of other processes. However often it is rung, they are told once in a
    while, and always after the last time."""

    def __init__(self, database: Database) -> None:
        self.quiet = False
        """Whether there is nobody to ring for: a relay of this process has everything."""
        self.sender = secrets.token_hex(8)
        self._database = database
        self._wanted = False
        self._ringing: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Tell them soon, if the database can."""
        if self.quiet or not self._database.is_postgresql:
            return
        self._wanted = True
        if self._ringing is None or self._ringing.done():
            self._ringing = asyncio.ensure_future(self._ring())

    async def _ring(self) -> None:
        while self._wanted:
            self._wanted = False
            with suppress(Unreachable):  # the relays will look by themselves
                await self.tell()
            await asyncio.sleep(PAUSE)

    async def tell(self) -> None:
        """Tell them now; Unreachable."""
        async with self._database.reading() as connection:
            await connection.execute(_NOTIFY, {"channel": CHANNEL, "sender": self.sender})

    async def close(self) -> None:
        """Ring no more."""
        if self._ringing is not None:
            self._ringing.cancel()
            await asyncio.wait([self._ringing])


async def listen(database: Database, heard: Callable[[], None]) -> None:
    """Call `heard` when another process has rung, and whenever it may have, until Unreachable.

    Returns if NOTIFY does not arrive, as behind a pooler in transaction mode.
    """
    lost, answered = asyncio.Event(), asyncio.Event()

    def ended(_connection: object) -> None:
        lost.set()
        answered.set()  # which it never will be: not to be waited for

    def notified(_connection: object, _pid: int, _channel: str, sender: str) -> None:
        answered.set()
        if sender != database.doorbell.sender:
            heard()

    with _translated(database), database.translated():
        async with database.engine.connect() as connection:
            try:
                raw: Any = (await connection.get_raw_connection()).driver_connection
                if not raw.lent.can_listen:
                    return
                raw.add_termination_listener(ended)
                await raw.add_listener(CHANNEL, notified)
                await database.doorbell.tell()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PATIENCE):
                        await answered.wait()
                if not answered.is_set():
                    return
                heard()  # somebody may have rung before
                await lost.wait()
                raise ConnectionResetError("the connection that listens was lost")
            finally:  # nobody else is to have it with its listener
                await connection.invalidate(sys.exception())


@contextmanager
def _translated(database: Database) -> Iterator[None]:
    """Unreachable for what the driver itself raises."""
    import asyncpg  # type: ignore[import-untyped]  # only where it is PostgreSQL

    try:
        yield
    except (
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        asyncpg.InternalClientError,  # asked between the server's last word and its end
    ) as error:
        raise Unreachable(f"{database.shown_url} cannot be listened to: {error}.") from error
