"""How often the handling of a suspect was begun: of a message that was handed out so often that it
may be killing its workers. Brokers count what they hand out, also what no handler ever saw."""

from __future__ import annotations

from sqlalchemy import Insert, delete
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmesh.persistence.dialects import mariadb
from eventmesh.persistence.tables import start
from eventmesh.persistence.types import database_now


async def note(connection: AsyncConnection, subscription: str, message_id: str) -> int:
    """Count one more start; returns how many there are, this one included."""
    now = database_now()
    first = {"subscription": subscription, "message_id": message_id, "starts": 1, "begun_at": now}
    again = {"starts": start.c.starts + 1, "begun_at": now}
    dialect = connection.dialect.name
    statement: Insert
    if dialect == mariadb.NAME:
        statement = mysql.insert(start).values(first).on_duplicate_key_update(again)
    else:
        insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
        keys = [start.c.subscription, start.c.message_id]
        statement = (
            insert(start).values(first).on_conflict_do_update(index_elements=keys, set_=again)
        )
    return await connection.scalar(statement.returning(start.c.starts)) or 0


async def forget(
    session: AsyncSession | AsyncConnection, subscription: str, message_id: str
) -> None:
    """It was handled, or given up: it is no suspect any more."""
    await session.execute(
        delete(start).where(start.c.subscription == subscription, start.c.message_id == message_id)
    )
