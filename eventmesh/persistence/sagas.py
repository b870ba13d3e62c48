"""The rows of sagas: the state and progress of each. Concurrent writers are detected by a version
number in the row (optimistic locking)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Insert,
    Select,
    Update,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmesh.errors import Conflict
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import saga


@dataclass(frozen=True, slots=True)
class SagaRow:
    """A saga as it is stored. `row_version` counts its changes."""

    id: str
    name: str
    version: int
    status: str
    state: dict[str, Any]
    steps: dict[str, Any]
    reason: str | None
    row_version: int


async def load(session: AsyncSession, name: str, saga_id: str) -> SagaRow | None:
    """The saga of this name and id."""
    known = {"saga_name": name, "saga_id": saga_id}
    row = (await session.execute(_load_statement(), known)).one_or_none()
    return None if row is None else SagaRow(*row)


async def store(session: AsyncSession, row: SagaRow, *, ended: bool) -> None:
    """Insert a saga at row version 1, or update it from the version before, with times by the
    database's clock. Conflict when another worker has changed it since it was loaded."""
    values = {
        "status": row.status,
        "state": row.state,
        "steps": row.steps,
        "reason": row.reason,
        "row_version": row.row_version,
    }
    if row.row_version == 1:
        values |= {"id": row.id, "name": row.name, "version": row.version}
        await session.execute(_insert_statement(ended), values)
        return
    known = {"saga_name": row.name, "saga_id": row.id, "known_version": row.row_version - 1}
    updated = await session.execute(_update_statement(tuple(values), ended), values | known)
    if not updated.rowcount:  # type: ignore[attr-defined]
        raise Conflict(f"saga {row.id} was changed by another worker at the same time")


async def count_by_status(connection: AsyncConnection) -> dict[str, int]:
    """How many sagas there are of each status."""
    rows = await connection.execute(select(saga.c.status, func.count()).group_by(saga.c.status))
    return dict(rows.all())


@cache  # building a statement takes longer than running it
def _load_statement() -> Select[Any]:
    columns = [saga.c[field.name] for field in fields(SagaRow)]
    return select(*columns).where(*_this_saga())


def _this_saga() -> tuple[ColumnElement[bool], ...]:
    return saga.c.name == bindparam("saga_name"), saga.c.id == bindparam("saga_id")


@cache
def _insert_statement(ended: bool) -> Insert:
    return insert(saga).values(_times(ended) | {"started_at": database_now()})


@cache
def _update_statement(columns: tuple[str, ...], ended: bool) -> Update:
    return (
        update(saga)
        .where(*_this_saga())
        .where(saga.c.row_version == bindparam("known_version"))
        .values({column: bindparam(column) for column in columns} | _times(ended))
    )


def _times(ended: bool) -> dict[str, Any]:
    return {"updated_at": database_now(), "ended_at": database_now() if ended else None}
