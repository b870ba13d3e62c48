"""Deleting rows that are too old to be needed: in small batches, oldest first, each in a
transaction of its own, so that no other transaction waits for long."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Delete,
    Executable,
    Select,
    bindparam,
    delete,
    func,
    select,
    tuple_,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence import counts
from eventmesh.persistence.counts import Way
from eventmesh.persistence.dialects.sql import UtcDateTime
from eventmesh.persistence.tables import action, inbox, reaction, saga, saga_log, start

RECEIVED, BEGUN, ENDED = inbox.c.received_at, start.c.begun_at, saga.c.ended_at
REACTED, ACTED = reaction.c.updated_at, action.c.at
"""The columns by which rows age: of the inbox, of the starts of possible poison messages, of sagas
that have ended, of reactions, of operators' actions."""

_AGES = (RECEIVED, BEGUN, ENDED, REACTED, ACTED)

_MOMENT = timedelta(microseconds=1)  # the resolution of the databases' times


def oldest(connection: Connection) -> dict[Column[datetime], datetime | None]:
    """The age of the oldest row, by the column by which it ages; None where there is no row."""
    found = connection.execute(_oldest()).one()
    return dict(zip(_AGES, found, strict=True))


async def purge(
    connection: AsyncConnection, age: Column[datetime], before: datetime, most: int
) -> bool:
    """Delete rows that are older, about `most` of them; returns whether there may be more."""
    cut = await connection.scalar(_cut(age), {"before": before, "most": most})
    # Rows of exactly this age go too: those of a group all have the same time.
    until = {"until": cut or before - _MOMENT}
    if age is ENDED:
        await connection.execute(_delete_logs(), until)
    if age is RECEIVED:
        forgotten = Counter(await connection.scalars(_forget(), until))
        ways = {Way("forgotten", name, "", ""): number for name, number in forgotten.items()}
        await counts.add_now(connection, ways)
    else:
        await connection.execute(_delete(age), until)
    return cut is not None


@cache  # building a statement takes longer than running it
def _oldest() -> Select[Any]:
    return select(*(select(func.min(age)).scalar_subquery() for age in _AGES))


@cache
def _cut(age: Column[datetime]) -> Select[datetime]:
    older = select(age).where(age < bindparam("before", type_=UtcDateTime))
    return older.order_by(age).limit(1).offset(bindparam("most"))


@cache
def _forget() -> Executable:
    return _delete(RECEIVED).returning(inbox.c.subscription)


@cache
def _delete_logs() -> Delete:
    """Of the sagas that are deleted next."""
    going = select(saga.c.name, saga.c.id).where(bindparam("until", type_=UtcDateTime) >= ENDED)
    return delete(saga_log).where(tuple_(saga_log.c.saga_name, saga_log.c.saga_id).in_(going))


@cache
def _delete(age: Column[datetime]) -> Delete:
    return delete(age.table).where(age <= bindparam("until", type_=UtcDateTime))
