"""The rows of sagas, and their log: read and written by groups, a few statements for all.

A group of answers locks the rows of its sagas in one statement and in the order of their ids, so
that two workers with answers for the same sagas wait for each other, and neither deadlocks nor has
to try again. What it has decided is written by one statement: the rows, their log, and the deletion
of time-outs that are not needed any more. On MariaDB and SQLite each is a statement of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    Connection,
    Delete,
    Insert,
    Select,
    Text,
    Update,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from eventmesh.errors import Conflict, EventMeshError
from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import UtcDateTime, database_now
from eventmesh.persistence.tables import outbox, saga, saga_log
from eventmesh.storable import storable
from eventmesh.wire.envelope import UNIQUE_ID

MOST_NAMES = 255
"""Characters of what a saga waits for that can be stored, to be listed by."""


@dataclass(frozen=True, slots=True)
class SagaRow:
    """A saga as it is stored. `row_version` counts its changes; `details` is None in rows of
    before migration 0005."""

    id: str
    name: str
    version: int
    status: str
    state: dict[str, Any]
    steps: dict[str, Any]
    reason: str | None
    row_version: int
    details: dict[str, Any] | None = None
    key: str | None = None
    waiting_for: str = ""
    due_at: datetime | None = None
    started_at: datetime | None = field(default=None, compare=False)
    updated_at: datetime | None = field(default=None, compare=False)
    ended_at: datetime | None = field(default=None, compare=False)

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in ("running", "undoing", "parked")


_ID_RANGES = tuple(
    (form, form.replace("0", "f"))
    for form in ("00000000-0000-0000-0000-000000000000", f"sha256:{'0' * 64}")
)
"""The first and the last id of each form that an id of a saga has; see `UNIQUE_ID`."""


class KeyTaken(EventMeshError):
    """One of these keys belongs to another open saga."""


_COLUMNS = tuple(each.name for each in fields(SagaRow))


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a saga's history."""

    saga_id: str
    entry: Mapping[str, Any]


async def lock(
    session: AsyncSession, name: str, ids: Collection[str], keys: Collection[str] = ()
) -> list[SagaRow]:
    """The sagas with these ids and these keys, locked until the transaction ends. Of the sagas of a
    key it is the open one, or the one that was started last where none is. A row that another
    transaction has locked is waited for."""
    if not ids and not keys:
        return []
    return await session.run_sync(_lock, name, ids, keys)


def _lock(
    session: Session, name: str, ids: Collection[str], keys: Collection[str]
) -> list[SagaRow]:
    connection = session.connection()
    wanted: dict[str, Any] = {"saga_name": name}
    statement = dialect_of(connection).lock_sagas(saga, _COLUMNS)
    if statement is not None:
        wanted |= {"ids": sorted(ids), "keys": sorted(keys)}
    else:
        statement = _lock_statement()
        if keys:
            by_key = {**wanted, "keys": _padded(keys)}
            ids = {*ids, *connection.scalars(_keyed_statement(), by_key)}
        wanted["ids"] = _padded(ids)
        if not ids:
            return []
    return [SagaRow(*row) for row in connection.execute(statement, wanted)]


async def holders_of(session: AsyncSession, name: str, keys: Collection[str]) -> dict[str, str]:
    """Which of these keys belong to an open saga, and its id."""
    rows = await session.execute(_holders_statement(), {"saga_name": name, "keys": _padded(keys)})
    return {row.key: row.id for row in rows}


def keyless(connection: Connection, name: str) -> list[str]:
    """The ids of the open sagas of this name that have no key, sorted."""
    return sorted(connection.scalars(_keyless_statement(), {"saga_name": name}))


async def store(
    session: AsyncSession,
    name: str,
    rows: Sequence[SagaRow] = (),
    log: Sequence[LogEntry] = (),
    cancelled: Collection[str] = (),
    withdrawn: Collection[str] = (),
) -> None:
    """Store what a group has changed in the sagas of this name, with times by the database's clock.

    Rows of row version 1 are inserted, the others, which must be locked, are updated; entries are
    appended to the log. `cancelled` are ids of time-outs, which are deleted from the outbox where
    the database finds delayed messages by their ids; one that is left, or that a relay is
    publishing, comes all the same, and its saga then finds it stale. `withdrawn` are ids of delayed
    commands, which every database deletes from the outbox, unless a relay is publishing them.

    KeyTaken where a row has the key of another open saga; Conflict where one was not locked.
    """
    if rows or log or cancelled or withdrawn:
        await session.run_sync(_store, name, rows, log, cancelled, withdrawn)


def _store(
    session: Session,
    name: str,
    rows: Sequence[SagaRow],
    log: Sequence[LogEntry],
    cancelled: Collection[str],
    withdrawn: Collection[str],
) -> None:
    values = [_values(row) for row in rows]
    entries = [
        {"saga_name": name, "saga_id": entry.saga_id, "entry": dict(entry.entry)} for entry in log
    ]
    connection = session.connection()
    dialect = dialect_of(connection)
    if dialect.can_cancel_delayed:
        cancelled = {*cancelled, *withdrawn}
    elif withdrawn:
        _delete_one_by_one(connection, withdrawn)
    at_once = dialect.store_sagas(name, values, entries, sorted(cancelled))
    try:
        if at_once is not None:
            stored = connection.execute(*at_once)
            if stored.rowcount != len(rows):
                raise Conflict(f"sagas {name} were changed by somebody who had not locked them")
        else:
            _store_rows(connection, values)
    except IntegrityError as error:
        raise KeyTaken(", ".join(row.key for row in rows if row.key is not None)) from error
    if at_once is None:
        if entries:
            connection.execute(_log_statement(), entries)
        if cancelled and dialect.can_cancel_delayed:
            connection.execute(_cancel_statement(), {"ids": _padded(cancelled)})


def _delete_one_by_one(connection: Connection, withdrawn: Collection[str]) -> None:
    """Delete delayed messages where no index finds them by their ids: all of them are read, without
    a lock, and these are deleted by their numbers, as a relay does."""
    wanted = {"ids": _padded(withdrawn)}
    for seq in connection.scalars(_delayed_statement(), wanted).all():
        connection.execute(delete(outbox).where(outbox.c.seq == seq))


def _store_rows(connection: Connection, rows: Iterable[dict[str, Any]]) -> None:
    lots: dict[tuple[bool, bool], list[dict[str, Any]]] = {}
    for row in rows:
        lots.setdefault((row["new_row_version"] == 1, bool(row["new_is_open"])), []).append(row)
    for (is_new, is_open), values in lots.items():
        statement = _insert_statement(is_open) if is_new else _update_statement(is_open)
        connection.execute(statement, values)


def _values(row: SagaRow) -> dict[str, Any]:
    return {
        "saga_name": row.name,
        "saga_id": row.id,
        "new_version": row.version,
        "new_status": row.status,
        "new_state": row.state,
        "new_steps": row.steps,
        "new_reason": None if row.reason is None else storable(row.reason),
        "new_row_version": row.row_version,
        "new_details": row.details,
        "new_key": row.key,
        "new_is_open": True if row.is_open else None,
        "new_waiting_for": row.waiting_for,
        "new_due_at": row.due_at,
    }


async def load(
    connection: AsyncConnection | AsyncSession, name: str, saga_id: str
) -> SagaRow | None:
    """The saga of this name and id, without a lock."""
    wanted = {"saga_name": name, "saga_id": saga_id}
    row = (await connection.execute(_load_statement(), wanted)).one_or_none()
    return None if row is None else SagaRow(*row)


async def find_by_id(connection: AsyncConnection, service: str, beginning: str) -> list[SagaRow]:
    """The sagas of this service whose ids begin so, two of them at the most: also those that are
    not in its code any more.

    They are found by a range of the primary key, which a LIKE is not by most collations. Both ends
    of the range are whole ids, because a collation may pass over the hyphens: `0199` is looked for
    between `01990000-0000-0000-0000-000000000000` and `0199ffff-ffff-ffff-ffff-ffffffffffff`.
    """
    typed = beginning.lower()
    ranges = [
        saga.c.id.between(first, typed + last[len(typed) :])
        for first, last in ((typed + low[len(typed) :], high) for low, high in _ID_RANGES)
        if UNIQUE_ID.fullmatch(first)
    ]
    if not ranges:
        return []
    query = select(*(saga.c[column] for column in _COLUMNS)).where(
        saga.c.name.startswith(f"{service}.", autoescape=True), or_(*ranges)
    )
    return [SagaRow(*row) for row in await connection.execute(query.limit(2))]


async def find_by_ids(
    connection: AsyncConnection, ids: Collection[str], most: int
) -> list[SagaRow]:
    """The sagas of any name with these ids, oldest first, `most` at the most."""
    query = select(*(saga.c[column] for column in _COLUMNS)).where(saga.c.id.in_(sorted(ids)))
    rows = await connection.execute(query.order_by(saga.c.started_at).limit(most))
    return [SagaRow(*row) for row in rows]


async def log_of(
    connection: AsyncConnection, name: str, saga_id: str
) -> list[tuple[datetime, Any]]:
    """The log of a saga, oldest first."""
    rows = await connection.execute(
        select(saga_log.c.at, saga_log.c.entry)
        .where(saga_log.c.saga_name == name, saga_log.c.saga_id == saga_id)
        .order_by(saga_log.c.seq)
    )
    return [(at, entry) for at, entry in rows]


async def find(
    connection: AsyncConnection,
    service: str | None = None,
    *,
    names: Collection[str] = (),
    statuses: Iterable[str] = (),
    step: str | None = None,
    key: str | None = None,
    started_before: datetime | None = None,
    most: int = 100,
) -> list[SagaRow]:
    """Sagas that match, oldest first, `most` at the most: of this service, and of these names,
    where they are given."""
    query = select(*(saga.c[column] for column in _COLUMNS)).order_by(saga.c.started_at).limit(most)
    if service is not None:
        query = query.where(saga.c.name.startswith(f"{service}.", autoescape=True))
    if names:
        query = query.where(saga.c.name.in_(sorted(names)))
    chosen = tuple(statuses)
    if chosen:
        query = query.where(saga.c.status.in_(chosen))
        if set(chosen) <= {"running", "undoing", "parked"}:
            query = query.where(saga.c.ended_at.is_(None))  # by the index of open ones
    if step is not None:
        query = query.where(_waits_for(step))
    if key is not None:
        query = query.where(saga.c.key == key)
    if started_before is not None:
        query = query.where(saga.c.started_at < started_before)
    return [SagaRow(*row) for row in await connection.execute(query)]


@dataclass(frozen=True, slots=True)
class SagaLot:
    """How many open sagas of a name wait for the same, and since when the oldest of them runs."""

    name: str
    version: int
    status: str
    waiting_for: str
    count: int
    oldest: datetime
    age: float
    """Seconds since then, by the database's clock."""
    overdue: int
    """How many of them had to time out more than a minute ago, and have not. Parked ones wait for
    an operator, not for a time-out."""


async def census(connection: AsyncConnection, name: str | None = None) -> list[SagaLot]:
    """The open sagas, counted by what they wait for."""
    columns = (saga.c.name, saga.c.version, saga.c.status, saga.c.waiting_for)
    is_late = saga.c.due_at < bindparam("late", type_=UtcDateTime)
    late = func.sum(case((is_late, 1), else_=0))
    query = (
        select(*columns, func.count(), func.min(saga.c.started_at), late)
        .where(saga.c.ended_at.is_(None))
        .group_by(*columns)
        .order_by(*columns)
    )
    if name is not None:
        query = query.where(saga.c.name == name)
    now = (await connection.execute(select(database_now()))).scalar_one()
    rows = await connection.execute(query, {"late": now - timedelta(minutes=1)})
    return [
        SagaLot(
            name,
            version,
            status,
            waiting or "",
            count,
            oldest,
            max((now - oldest).total_seconds(), 0.0),
            0 if status == "parked" else int(overdue or 0),
        )
        for name, version, status, waiting, count, oldest, overdue in rows
    ]


@dataclass(frozen=True, slots=True)
class KeptEvents:
    """How many open sagas keep an event of this version, and since when the oldest of them runs."""

    version: int
    count: int
    oldest: datetime


async def census_of_kept(connection: AsyncConnection, message: str) -> list[KeptEvents]:
    """The open sagas that keep this event, which they may still read: as the answer to a step, as
    their failure, or because it came early or while they were parked."""
    named = f'"{message}"'
    query = select(saga.c.steps, saga.c.details, saga.c.started_at).where(
        saga.c.ended_at.is_(None),
        or_(
            *(
                cast(column, Text).contains(named, autoescape=True)
                for column in (saga.c.steps, saga.c.details)
            )
        ),
    )
    since: dict[int, list[datetime]] = {}
    for steps, details, started_at in await connection.execute(query):
        for version in _kept_versions(steps, details or {}, message):
            since.setdefault(version, []).append(started_at)
    return [KeptEvents(version, len(each), min(each)) for version, each in sorted(since.items())]


def _kept_versions(steps: Mapping[str, Any], details: Mapping[str, Any], message: str) -> set[int]:
    kept = [
        details.get("failure"),
        *details.get("early", {}).values(),
        *details.get("held", ()),
        *(unit.get("answer") for unit in steps.values()),
    ]
    return {
        each["version"]
        for each in kept
        if each and each.get("name") == message and each.get("version")
    }


async def count_by_status(connection: AsyncConnection) -> dict[str, int]:
    """How many sagas there are of each status."""
    rows = await connection.execute(select(saga.c.status, func.count()).group_by(saga.c.status))
    return dict(rows.all())


def _waits_for(step: str) -> Any:
    waiting = saga.c.waiting_for
    patterns = (f"{step}", f"{step},%", f"%,{step}", f"%,{step},%")
    return or_(*(waiting.like(pattern.replace("_", r"\_"), escape="\\") for pattern in patterns))


def _padded(values: Collection[str]) -> list[str]:
    """The values in order, with the last one repeated up to a power of two: so that few texts of a
    statement are prepared, not one for each number of values."""
    ordered = sorted(values)
    size = 1
    while size < len(ordered):
        size *= 2
    return ordered + [ordered[-1]] * (size - len(ordered)) if ordered else []


@cache  # building a statement takes longer than running it
def _load_statement() -> Select[Any]:
    return select(*(saga.c[column] for column in _COLUMNS)).where(
        saga.c.name == bindparam("saga_name"), saga.c.id == bindparam("saga_id")
    )


@cache
def _lock_statement() -> Select[Any]:
    return (
        select(*(saga.c[column] for column in _COLUMNS))
        .where(
            saga.c.name == bindparam("saga_name"),
            saga.c.id.in_(bindparam("ids", expanding=True)),
        )
        .order_by(saga.c.id)
        .with_for_update()
    )


@cache
def _keyed_statement() -> Select[Any]:
    """The ids of the sagas that `lock` means by these keys."""
    of_key = func.row_number().over(
        partition_by=saga.c.key,
        order_by=(saga.c.is_open.is_(None), saga.c.started_at.desc(), saga.c.id.desc()),
    )
    numbered = (
        select(saga.c.id, of_key.label("number"))
        .where(
            saga.c.name == bindparam("saga_name"),
            saga.c.key.in_(bindparam("keys", expanding=True)),
        )
        .subquery()
    )
    return select(numbered.c.id).where(numbered.c.number == 1)


@cache
def _keyless_statement() -> Select[Any]:
    return select(saga.c.id).where(
        saga.c.name == bindparam("saga_name"), saga.c.ended_at.is_(None), saga.c.key.is_(None)
    )


@cache
def _holders_statement() -> Select[Any]:
    return select(saga.c.key, saga.c.id).where(
        saga.c.name == bindparam("saga_name"),
        saga.c.key.in_(bindparam("keys", expanding=True)),
        saga.c.is_open,
    )


_CHANGING = (
    "version",
    "status",
    "state",
    "steps",
    "reason",
    "row_version",
    "details",
    "key",
    "is_open",
    "waiting_for",
    "due_at",
)


def _changes(is_open: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        column: bindparam(f"new_{column}", type_=saga.c[column].type) for column in _CHANGING
    }
    return values | {
        "updated_at": database_now(),
        "ended_at": None if is_open else database_now(),
    }


@cache
def _insert_statement(is_open: bool) -> Insert:
    known: dict[str, Any] = {"name": bindparam("saga_name"), "id": bindparam("saga_id")}
    return insert(saga).values(known | _changes(is_open) | {"started_at": database_now()})


@cache
def _update_statement(is_open: bool) -> Update:
    return (
        update(saga)
        .where(saga.c.name == bindparam("saga_name"), saga.c.id == bindparam("saga_id"))
        .values(_changes(is_open))
    )


@cache
def _log_statement() -> Insert:
    return insert(saga_log).values(at=database_now())


@cache
def _delayed_statement() -> Select[Any]:
    return select(outbox.c.seq).where(
        outbox.c.id.in_(bindparam("ids", expanding=True)), outbox.c.due_at.is_not(None)
    )


@cache
def _cancel_statement() -> Delete:
    return delete(outbox).where(
        outbox.c.id.in_(bindparam("ids", expanding=True)), outbox.c.due_at.is_not(None)
    )
