"""Figures about the outbox, for metrics, probes and the inventory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Integer, case, func, inspect, literal_column, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.tables import outbox
from eventmesh.wire.envelope import Envelope

MOST_COUNTED = 1_000_000
"""Messages after which `stats` stops counting."""


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """How many messages wait to be published, are delayed, and are parked. With `is_partial` there
    are more than were counted, of the first two."""

    pending: int
    delayed: int
    parked: int
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class OutboxLot:
    """How many messages of a kind wait in the outbox; `state` is due, delayed or parked.
    `dataschema` is what the messages say, and `oldest` when the oldest says that it was made."""

    name: str
    dataschema: str
    state: str
    number: int
    oldest: str


async def stats(
    connection: AsyncConnection, now: datetime, most: int = MOST_COUNTED
) -> OutboxStats:
    """Count at most so many messages: in a backlog of many millions, counting all would take longer
    than an operator waits for an answer. Parked ones, which have an index, are all counted."""
    some = select(outbox.c.due_at, outbox.c.parked).limit(most + 1).subquery()
    counted = select(
        func.count(),
        func.count(case(((some.c.due_at > now) & ~some.c.parked, 1))),
        func.count(case((some.c.parked, 1))),
    ).select_from(some)
    total, delayed, parked = (await connection.execute(counted)).one()
    is_partial = total > most
    known = await count_parked(connection) if is_partial else parked
    return OutboxStats(min(total - delayed - parked, most), delayed, known, is_partial)


async def count_parked(connection: AsyncConnection) -> int:
    """How many messages are parked."""
    # By the index of rejected rows, which a number given as a parameter would make unusable.
    were_rejected = outbox.c.attempts > literal_column("0", Integer)
    counted = select(func.count()).where(were_rejected, outbox.c.parked)
    return (await connection.execute(counted)).scalar_one()


async def oldest(connection: AsyncConnection, now: datetime) -> datetime | None:
    """Since when the oldest message that is not parked could have been published; None where none
    waits."""
    at_once = select(outbox.c.headers).where(outbox.c.due_at.is_(None), ~outbox.c.parked)
    delayed = select(outbox.c.due_at).where(outbox.c.due_at <= now, ~outbox.c.parked)
    headers = await connection.scalar(at_once.order_by(outbox.c.seq).limit(1))
    due_at = await connection.scalar(delayed.order_by(outbox.c.due_at).limit(1))
    made_at = Envelope(headers, b"").time if headers else None
    return min((since for since in (made_at, due_at) if since is not None), default=None)


async def census(connection: AsyncConnection, now: datetime) -> list[OutboxLot]:
    """All that waits in the outbox, by kind; nothing where the database has no outbox."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(outbox.name)):
        return []
    state = case((outbox.c.parked, "parked"), (outbox.c.due_at > now, "delayed"), else_="due")
    dataschema, made_at = (outbox.c.headers[part].as_string() for part in ("dataschema", "time"))
    kind = select(
        outbox.c.name, dataschema.label("dataschema"), state.label("state"), made_at.label("time")
    ).subquery()
    by = (kind.c.name, kind.c.dataschema, kind.c.state)
    rows = await connection.execute(
        select(*by, func.count(), func.min(kind.c.time)).group_by(*by).order_by(*by)
    )
    return [
        OutboxLot(name, dataschema or "", state, number, oldest or "")
        for name, dataschema, state, number, oldest in rows
    ]
