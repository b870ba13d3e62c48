"""How often the handler of a possible poison message was started.

A message that was delivered many times may be one that kills its worker. A broker's redelivery
count alone does not show that, as it includes deliveries that no handler ever saw. So from some
count on, each start of the handler is recorded before it, in a transaction of its own, and removed
when the handler ends in any way. What remains counts the starts that never ended.
"""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import start


async def note(connection: AsyncConnection, subscription: str, message_id: str) -> int:
    """Count one more start; returns how many there are, this one included."""
    now = database_now()
    first = {"subscription": subscription, "message_id": message_id, "starts": 1, "begun_at": now}
    again = {"starts": start.c.starts + 1, "begun_at": now}
    keys = ["subscription", "message_id"]
    statement = dialect_of(connection).upsert(start, keys, first, again)
    return await connection.scalar(statement.returning(start.c.starts)) or 0


async def forget(
    session: AsyncSession | AsyncConnection, subscription: str, message_id: str
) -> None:
    """Remove the count: the handler has ended, or the message was dead-lettered."""
    await session.execute(
        delete(start).where(start.c.subscription == subscription, start.c.message_id == message_id)
    )
