"""The inbox: which messages have taken effect in this database, by subscription."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.persistence.tables import inbox


async def claim(
    session: AsyncSession, subscription: str, message_ids: Sequence[str], now: datetime
) -> set[str]:
    """Enter these ids in one statement; returns those that were not there before.

    An id that another, uncommitted transaction is entering is waited for.
    """
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(inbox).on_conflict_do_nothing().returning(inbox.c.message_id)
    # Sorted, so that two workers with the same messages wait for each other instead of deadlocking.
    rows = [
        {"subscription": subscription, "message_id": message_id, "received_at": now}
        for message_id in sorted(set(message_ids))
    ]
    return set(await session.scalars(statement, rows))


async def unclaim(session: AsyncSession, subscription: str, message_ids: Sequence[str]) -> None:
    """Take back ids that the same transaction claimed and did not get to."""
    await session.execute(
        delete(inbox).where(
            inbox.c.subscription == subscription, inbox.c.message_id.in_(message_ids)
        )
    )
