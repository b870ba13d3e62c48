"""Which subscriptions of a service operators have paused: a row each, in the service's database, so
that a pause survives every restart and holds for all workers of the service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import pause as table

_PAUSED = select(table.c.subscription, table.c.at, table.c.who, table.c.reason)


@dataclass(frozen=True, slots=True)
class Pause:
    """Since when a subscription is paused, by whom, and why."""

    at: datetime
    who: str
    reason: str

    def __str__(self) -> str:
        return f"paused since {self.at:%Y-%m-%d %H:%M:%S} UTC by {self.who}: {self.reason}"


async def pause(connection: AsyncConnection, subscription: str, who: str, reason: str) -> bool:
    """Pause a subscription; False if it is paused already, which changes nothing."""
    absent = dialect_of(connection).insert_absent(table)
    values = {"subscription": subscription, "at": database_now(), "who": who, "reason": reason}
    return bool((await connection.execute(absent.values(values))).rowcount)


async def resume(connection: AsyncConnection, subscription: str) -> bool:
    """End a pause; False if the subscription is not paused."""
    ended = delete(table).where(table.c.subscription == subscription)
    return bool((await connection.execute(ended)).rowcount)


def paused(connection: Connection) -> dict[str, Pause]:
    """All pauses in this database, by subscription."""
    return {name: Pause(*row) for name, *row in connection.execute(_PAUSED)}
