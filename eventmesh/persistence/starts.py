"""How often the handling of a suspect was begun: of a message that was handed out so often that it
may be killing its workers. Brokers count what they hand out, also what no handler ever saw."""

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
    """It was handled, or given up: it is no suspect any more."""
    await session.execute(
        delete(start).where(start.c.subscription == subscription, start.c.message_id == message_id)
    )
