"""The log of what operators did: who, what, when and why. Written before the action, and completed
with its outcome, so that one that was cut off is seen, too."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import action


@dataclass(frozen=True, slots=True)
class ActionRow:
    """An action. `subject` is the subscription, saga or service that it was done to; `outcome` is
    None while it goes on, and where its process ended in the middle of it."""

    seq: int
    at: datetime
    service: str
    who: str
    what: str
    subject: str
    reason: str
    details: Mapping[str, Any]
    outcome: str | None


async def begin(
    connection: AsyncConnection,
    *,
    service: str,
    who: str,
    what: str,
    subject: str,
    reason: str,
    details: Mapping[str, Any],
) -> int:
    """Write an action that is about to begin; returns its number."""
    row = await connection.execute(
        insert(action).values(
            at=database_now(),
            service=service,
            who=who,
            what=what,
            subject=subject,
            reason=reason,
            details=dict(details),
        )
    )
    primary_key = row.inserted_primary_key
    if primary_key is None:
        raise RuntimeError("the database has not told the number of the new row")
    return int(primary_key[0])


async def end(connection: AsyncConnection, seq: int, outcome: str) -> None:
    """Write what has become of an action."""
    await connection.execute(update(action).where(action.c.seq == seq).values(outcome=outcome))


async def newest(
    connection: AsyncConnection, services: Collection[str], most: int, before: int | None = None
) -> list[ActionRow]:
    """The newest actions of these services, `most` at the most; those before a number, where one is
    given."""
    rows = select(
        *(action.c[column] for column in ("seq", "at", "service", "who", "what", "subject")),
        *(action.c[column] for column in ("reason", "details", "outcome")),
    ).where(action.c.service.in_(sorted(services)))
    if before is not None:
        rows = rows.where(action.c.seq < before)
    found = await connection.execute(rows.order_by(action.c.seq.desc()).limit(most))
    return [ActionRow(*row) for row in found]
