"""The rows of reactions: what each has done for a key, so that it can be undone once.

A group of messages locks the rows of all its keys in one statement, and writes what has become of
them in one more, or two where some rows are new and others are not. A row that two transactions
insert at the same time is an IntegrityError in one of them, which is then tried again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import Insert, Select, Update, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import reaction

Status = Literal["done", "undone", "cancelled"]


@dataclass(frozen=True, slots=True)
class ReactionRow:
    """What a reaction has done for a key. `cancelled`: its undo came first, so that it has no
    message and does nothing any more. `result` holds what the reaction returned, as JSON."""

    key: str
    status: Status
    message_id: str | None = None
    result: dict[str, Any] | None = None


async def lock(
    session: AsyncSession, subscription: str, keys: Collection[str]
) -> dict[str, ReactionRow]:
    """The rows with these keys, by key, locked until the transaction ends."""
    wanted = {"of_subscription": subscription, "keys": sorted(keys)}
    rows = await session.execute(_lock_statement(), wanted)
    return {row.key: ReactionRow(*row) for row in rows}


async def store(
    session: AsyncSession,
    subscription: str,
    new: Iterable[ReactionRow],
    changed: Iterable[ReactionRow],
) -> None:
    """Insert rows, and update others, which must be locked; at the time of the database's clock."""
    for statement, rows in ((_insert_statement(), new), (_update_statement(), changed)):
        values = [
            {
                "of_subscription": subscription,
                "of_key": row.key,
                "new_status": row.status,
                "new_message_id": row.message_id,
                "new_result": row.result,
            }
            for row in sorted(rows, key=lambda row: row.key)
        ]
        if values:
            await session.execute(statement, values)


@cache  # building a statement takes longer than running it
def _lock_statement() -> Select[Any]:
    columns = reaction.c
    return (
        select(columns.key, columns.status, columns.message_id, columns.result)
        .where(
            columns.subscription == bindparam("of_subscription"),
            columns.key.in_(bindparam("keys", expanding=True)),
        )
        .order_by(columns.key)
        .with_for_update()
    )


def _values() -> dict[str, Any]:
    return {
        "status": bindparam("new_status"),
        "message_id": bindparam("new_message_id"),
        "result": bindparam("new_result", type_=reaction.c.result.type),
        "updated_at": database_now(),
    }


@cache
def _insert_statement() -> Insert:
    known: dict[str, Any] = {
        "subscription": bindparam("of_subscription"),
        "key": bindparam("of_key"),
    }
    return insert(reaction).values(known | _values())


@cache
def _update_statement() -> Update:
    return (
        update(reaction)
        .where(
            reaction.c.subscription == bindparam("of_subscription"),
            reaction.c.key == bindparam("of_key"),
        )
        .values(_values())
    )
