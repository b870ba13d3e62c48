"""The inbox: which messages have taken effect in this database, by subscription."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.persistence import postgresql
from eventmesh.persistence.absent import insert_absent
from eventmesh.persistence.tables import inbox


async def claim(
    session: AsyncSession, subscription: str, message_ids: Sequence[str], now: datetime
) -> set[str]:
    """Enter these ids in one statement; returns those that were not there before.

    An id that another, uncommitted transaction is entering is waited for.
    """
    # Sorted, so that two workers with the same messages wait for each other instead of deadlocking.
    ids = sorted(set(message_ids))
    dialect = session.get_bind().dialect.name
    if dialect == postgresql.NAME:
        group = {"subscription": subscription, "received_at": now, "message_ids": ids}
        return set(await session.scalars(postgresql.ENTER, group))
    statement = insert_absent(dialect, inbox).returning(inbox.c.message_id)
    rows = [
        {"subscription": subscription, "message_id": message_id, "received_at": now}
        for message_id in ids
    ]
    return set(await session.scalars(statement, rows))


async def unclaim(session: AsyncSession, subscription: str, message_ids: Sequence[str]) -> None:
    """Take back ids that the same transaction claimed and did not get to."""
    await session.execute(
        delete(inbox).where(
            inbox.c.subscription == subscription, inbox.c.message_id.in_(message_ids)
        )
    )
