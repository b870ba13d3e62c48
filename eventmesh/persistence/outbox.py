"""The outbox: messages that their transaction has promised and the broker has not confirmed yet.

Pending rows are the state. There is no cursor, because a transaction that commits late would be
skipped by one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    bindparam,
    case,
    delete,
    func,
    inspect,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import UtcDateTime, by_index, database_now, refused_key
from eventmesh.persistence.tables import BUCKETS, outbox
from eventmesh.wire.envelope import Envelope, part_of


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that goes to the outbox with its transaction, to be published after `delay`
    seconds at the earliest."""

    envelope: Envelope
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message to be relayed."""

    seq: int
    envelope: Envelope
    attempts: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Up to which number, and up to which due time, rows have been seen."""

    seq: int
    due_at: datetime


NOTHING = Seen(0, datetime(1, 1, 1, tzinfo=UTC))


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that the broker did not take, why, and when it is to be tried again."""

    seq: int
    reason: str
    again_at: datetime


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """How many messages wait to be relayed, are delayed, and are parked."""

    pending: int
    delayed: int
    parked: int


@dataclass(frozen=True, slots=True)
class OutboxLot:
    """How many messages of a kind wait in the outbox; `state` is due, delayed or parked.
    `dataschema`, and when the `oldest` of them was made, are as the messages say them."""

    name: str
    dataschema: str
    state: str
    number: int
    oldest: str


def bucket_of(key: str | None, message_id: str) -> int:
    """The bucket of a key, or of a message without one."""
    return part_of(key, message_id, BUCKETS)


def store(
    connection: Connection,
    messages: Sequence[Outgoing],
    *,
    ordered: bool = False,
    now: datetime | None = None,
) -> None:
    """Insert these messages in one statement, in their order. When a delayed one is due is counted
    from `now`, which is asked of the database unless it is given.

    With `ordered`, on PostgreSQL, transactions with messages of one key wait for each other: each
    locks the keys of its messages until it ends. So their row numbers, by which relays publish,
    have the order of their commits. SQLite has one writer at a time, so there they have it anyway.
    """
    dialect = dialect_of(connection)
    if ordered:
        keys = {message.envelope.key for message in messages}
        # Sorted, so that two transactions cannot deadlock. Keys that share a number wait in vain.
        numbers = sorted({part_of(key, "", 2**31) for key in keys if key is not None})
        dialect.lock_keys(connection, numbers)
    if now is None and any(message.delay for message in messages):
        now = connection.scalar(select(database_now()))
    rows = [_values(message, now) for message in messages]
    connection.execute(*dialect.insert_outbox(outbox, rows))


async def due(
    connection: AsyncConnection,
    buckets: Collection[int],
    now: datetime,
    limit: int,
    beyond: Seen = NOTHING,
    *,
    behind: bool = False,
) -> list[OutboxRow]:
    """The oldest rows of these buckets that are due, up to `limit`, in the order of their keys;
    those only that are `beyond` what has been seen, or else all that are not.

    Rows of a key of which the broker has refused one wait until that one is gone; for ever, if it
    is parked.
    """
    parameters = {
        "buckets": sorted(buckets),
        "now": now,
        "most": limit,
        "seq": beyond.seq,
        "due_at": beyond.due_at,
    }
    rows = await connection.execute(_due_statement(behind), parameters)
    return [
        OutboxRow(seq, Envelope(headers, data), attempts) for seq, headers, data, attempts in rows
    ]


async def newest(connection: AsyncConnection, beyond: Seen) -> int:
    """The highest number of a row beyond what has been seen; the number seen if there is none."""
    rows = select(func.max(outbox.c.seq)).where(outbox.c.seq > beyond.seq)
    return await connection.scalar(rows) or beyond.seq


async def writers(connection: AsyncConnection) -> list[str]:
    """The transactions that may have put rows into the outbox and go on: numbers below those that
    were seen may become visible with them. None on SQLite, where one transaction writes at a time;
    on MariaDB, which tells nobody, there may always be one."""
    return await dialect_of(connection).outbox_writers(connection)


async def delete_confirmed(connection: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
    """Forget rows that the broker has confirmed, as they were read."""
    statement = dialect_of(connection).delete_outbox(outbox)
    for attempts in {row.attempts for row in rows}:
        seqs = [row.seq for row in rows if row.attempts == attempts]
        as_read = {"seqs": seqs, "attempts": attempts}
        gone = await connection.execute(statement, as_read)
        if gone.rowcount < len(seqs):
            await _delete_refused(connection, seqs)


async def _delete_refused(connection: AsyncConnection, seqs: Sequence[int]) -> None:
    """Forget what the broker has refused another relay since it was read: one that took over from
    this one, which stood still. That other does not look for long at what the refusal held up."""
    rest = delete(outbox).where(outbox.c.seq.in_(seqs)).returning(outbox.c.key)
    keys = {key for key in await connection.scalars(rest) if key is not None}
    await hold_next(connection, keys, "what came before it was refused")


async def hold_next(connection: AsyncConnection, keys: Collection[str], why: str) -> None:
    """Have the first row of each of these keys hold the others until it is gone, as if it had been
    refused: what held them is gone, and relays, which do not look for long where they are, would
    publish what is new of their keys before."""
    waits = outbox.c.due_at.is_(None) & (outbox.c.attempts == 0)
    nexts = select(func.min(outbox.c.seq)).where(outbox.c.key.in_(keys), waits)
    first = list(await connection.scalars(nexts.group_by(outbox.c.key)))
    if first:
        held = update(outbox).where(outbox.c.seq.in_(first))
        await connection.execute(held.values(attempts=1, due_at=database_now(), last_error=why))


async def mark_refused(
    connection: AsyncConnection, refused: Sequence[Refusal], park_after: int
) -> None:
    """Count an attempt for rows that the broker refused, and hold them, with their keys, until
    they are due again; park them at `park_after` attempts."""
    if refused:
        await connection.execute(
            update(outbox)
            .where(outbox.c.seq == bindparam("row"))
            .values(
                attempts=outbox.c.attempts + 1,
                last_error=bindparam("error"),
                due_at=bindparam("again_at"),
                parked=outbox.c.attempts + 1 >= park_after,
            ),
            [{"row": r.seq, "error": r.reason, "again_at": r.again_at} for r in refused],
        )


async def oldest(connection: AsyncConnection, now: datetime) -> datetime | None:
    """Since when the oldest message that is not parked could have been relayed; None where none
    waits."""
    at_once = select(outbox.c.headers).where(outbox.c.due_at.is_(None), ~outbox.c.parked)
    delayed = select(outbox.c.due_at).where(outbox.c.due_at <= now, ~outbox.c.parked)
    headers = await connection.scalar(at_once.order_by(outbox.c.seq).limit(1))
    due_at = await connection.scalar(delayed.order_by(outbox.c.due_at).limit(1))
    made_at = Envelope(headers, b"").time if headers else None
    return min((since for since in (made_at, due_at) if since is not None), default=None)


async def stats(connection: AsyncConnection, now: datetime) -> OutboxStats:
    """What waits in the outbox."""
    later = (outbox.c.due_at > now) & ~outbox.c.parked
    row = (
        await connection.execute(
            select(
                func.count(),
                func.count(case((later, 1))),
                func.count(case((outbox.c.parked, 1))),
            ).select_from(outbox)
        )
    ).one()
    total, delayed, parked = row
    return OutboxStats(pending=total - delayed - parked, delayed=delayed, parked=parked)


async def census(connection: AsyncConnection, now: datetime) -> list[OutboxLot]:
    """All that waits in the outbox, by kind; nothing where the database has none."""
    if not await connection.run_sync(lambda sync: inspect(sync).has_table(outbox.name)):
        return []
    state = case((outbox.c.parked, "parked"), (outbox.c.due_at > now, "delayed"), else_="due")
    dataschema, made_at = (outbox.c.headers[part].as_string() for part in ("dataschema", "time"))
    kind = select(
        outbox.c.name, dataschema.label("dataschema"), state.label("state"), made_at.label("time")
    ).subquery()
    by = (kind.c.name, kind.c.dataschema, kind.c.state)
    rows = await connection.execute(
        select(*by, func.count(), func.min(kind.c.time)).group_by(*by).order_by(*by)
    )
    return [
        OutboxLot(name, dataschema or "", state, number, oldest or "")
        for name, dataschema, state, number, oldest in rows
    ]


def _values(message: Outgoing, now: datetime | None) -> dict[str, Any]:
    envelope = message.envelope
    return {
        "id": envelope.id,
        "name": envelope.name,
        "key": envelope.key,
        "bucket": bucket_of(envelope.key, envelope.id),
        "headers": envelope.attributes,
        "data": envelope.data,
        "due_at": now + timedelta(seconds=message.delay) if now and message.delay else None,
    }


@cache  # building it takes longer than running it
def _due_statement(behind: bool) -> Select[Any]:
    held, now = outbox.alias("held"), bindparam("now", type_=UtcDateTime)
    holds = select(held.c.seq).where(
        held.c.attempts > 0,
        refused_key(held.c.key) == outbox.c.key,
        held.c.parked | (held.c.due_at > now) | (held.c.seq < outbox.c.seq),
    )
    relayable = (
        outbox.c.bucket.in_(bindparam("buckets", expanding=True)),
        ~outbox.c.parked,
        ~by_index(holds, held, "ix_eventmesh_outbox_refused").exists(),
    )
    columns = (outbox.c.seq, outbox.c.headers, outbox.c.data, outbox.c.attempts)
    rows: Select[Any] = select(*columns)
    rows = by_index(rows, outbox, "ix_eventmesh_outbox_due_at")
    seq, due_at = bindparam("seq", type_=BigInteger), bindparam("due_at", type_=UtcDateTime)
    # Two halves, so that each is read in the order of an index of its own.
    at_once = rows.where(
        outbox.c.due_at.is_(None),
        outbox.c.seq <= seq if behind else outbox.c.seq > seq,
        *relayable,
    ).order_by(outbox.c.seq)
    delayed = rows.where(
        outbox.c.due_at <= now,
        outbox.c.due_at <= due_at if behind else outbox.c.due_at > due_at,
        *relayable,
    ).order_by(outbox.c.due_at, outbox.c.seq)
    both = _first(at_once).union_all(_first(delayed)).subquery()
    return select(both).order_by(both.c.seq).limit(bindparam("most", type_=Integer))


def _first(query: Select[Any]) -> Select[Any]:
    # Wrapped, because SQLite takes no ORDER BY inside a UNION.
    return select(query.limit(bindparam("most", type_=Integer)).subquery())
