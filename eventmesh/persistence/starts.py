"""How often the handling of a suspect was begun: of a message that was handed out so often that it
may be killing its workers. Brokers count what they hand out, also what no handler ever saw."""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmesh.persistence.tables import start


async def note(connection: AsyncConnection, subscription: str, message_id: str) -> int:
    """Count one more start; returns how many there are, this one included."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    statement = (
        insert(start)
        .values(subscription=subscription, message_id=message_id, starts=1)
        .on_conflict_do_update(
            index_elements=[start.c.subscription, start.c.message_id],
            set_={"starts": start.c.starts + 1},
        )
        .returning(start.c.starts)
    )
    return await connection.scalar(statement) or 0


async def forget(
    session: AsyncSession | AsyncConnection, subscription: str, message_id: str
) -> None:
    """It was handled, or given up: it is no suspect any more."""
    await session.execute(
        delete(start).where(start.c.subscription == subscription, start.c.message_id == message_id)
    )
