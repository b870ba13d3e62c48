"""Reading the rows that a relay publishes next.

A relay remembers a position up to which it has published everything, so that it need not scan the
same part of the table again and again. A position has two coordinates, because there are two kinds
of rows: those that are due at once, in the order of their numbers, and those that were delayed or
rejected, in the order of their due times. Each kind is read along an index of its own.

What a relay reads at 12:00:10, after the position (number 100, due time 12:00:00):

    seq  key  due_at    attempts  parked
     90  a    -                0          not read: not after the position
    101  a    -                0          read
    102  b    12:00:05         1          read: it was rejected once, and its time has come
    103  b    -                0          blocked by 102, until that is gone
    104  c    12:00:20         0          delayed: not due yet
    105  c    -                0          read: a delayed message does not block its key
    106  d    12:05:00        10  yes     parked
    107  d    -                0          blocked by 106, until somebody retries or skips that

So 101, 102 and 105 are read. Row 90 may be one whose transaction committed very late; a sweep,
which reads up to the position, finds it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Select,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import UtcDateTime, by_index, refused_key
from eventmesh.persistence.tables import BUCKETS, outbox
from eventmesh.wire.envelope import Envelope


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message to be published."""

    seq: int
    envelope: Envelope
    attempts: int


@dataclass(frozen=True, slots=True)
class Position:
    """A row number and a due time, up to which rows have been read."""

    seq: int
    due_at: datetime


START = Position(0, datetime(1, 1, 1, tzinfo=UTC))
"""The position before all rows."""


def due(
    connection: Connection,
    buckets: Collection[int],
    now: datetime,
    limit: int,
    position: Position = START,
    *,
    up_to: bool = False,
) -> list[OutboxRow]:
    """The first rows of these buckets that can be published, up to `limit`, in the order of their
    numbers: those after the position, or with `up_to` those that are not."""
    parameters: dict[str, Any] = {
        "now": now,
        "most": limit,
        "seq": position.seq,
        "due_at": position.due_at,
    }
    has_all = len(buckets) == BUCKETS  # as a relay that is alone, which need not name them
    if not has_all:
        parameters["buckets"] = sorted(buckets)
    rows = connection.execute(_due_statement(up_to, has_all), parameters)
    return [
        OutboxRow(seq, Envelope(headers, data), attempts) for seq, headers, data, attempts in rows
    ]


def ahead(
    connection: Connection, position: Position, after: datetime
) -> tuple[int, datetime | None]:
    """What there is in all buckets, whether it can be published or not: the highest number of a row
    after the position, or the position's own if there is none; and the first due time of a delayed
    row that is later than `after`, or None where there is none."""
    found = connection.execute(_ahead_statement(), {"seq": position.seq, "after": after})
    row = found.one()
    return row.newest or position.seq, row.next_due


def has_rejected(connection: Connection) -> bool:
    """Whether there are rows that were rejected at least once, parked ones among them."""
    return connection.scalar(_rejected_statement()) is not None


async def next_due(connection: AsyncConnection, now: datetime) -> datetime | None:
    """When the next of the delayed rows is due, of all buckets; None where none is delayed."""
    found: datetime | None = await connection.scalar(_next_due_statement(), {"after": now})
    return found


def writers(connection: Connection) -> list[str]:
    """The open transactions that may have inserted rows: their numbers may be lower than some that
    were read already. There are none on SQLite, where one transaction writes at a time; on MariaDB,
    which does not tell, there may always be one."""
    return dialect_of(connection).outbox_writers(connection)


# The index of rejected rows has only those with attempts above 0. A database that is given this
# number as a parameter cannot use it, or, as SQLite, plans the statement anew each time.
_ZERO = literal_column("0", Integer)

# Every relay executes these often, and building a statement takes longer than executing it.


@cache
def _ahead_statement() -> Select[Any]:
    after = select(func.max(outbox.c.seq)).where(outbox.c.seq > bindparam("seq"))
    return select(
        after.scalar_subquery().label("newest"),
        _next_due_statement().scalar_subquery().label("next_due"),
    )


@cache
def _rejected_statement() -> Select[Any]:
    return select(outbox.c.seq).where(outbox.c.attempts > _ZERO).limit(1)


@cache
def _next_due_statement() -> Select[Any]:
    later = select(outbox.c.due_at).where(outbox.c.due_at > bindparam("after", type_=UtcDateTime))
    rows = by_index(later, outbox, "ix_eventmesh_outbox_due_at")
    return rows.order_by(outbox.c.due_at, outbox.c.seq).limit(1)


@cache
def _due_statement(up_to: bool, has_all_buckets: bool) -> Select[Any]:
    first, now = outbox.alias("first"), bindparam("now", type_=UtcDateTime)
    blocks = select(first.c.seq).where(
        first.c.attempts > _ZERO,
        refused_key(first.c.key) == outbox.c.key,
        first.c.parked | (first.c.due_at > now) | (first.c.seq < outbox.c.seq),
    )
    can_be_published = [
        ~outbox.c.parked,
        ~by_index(blocks, first, "ix_eventmesh_outbox_refused").exists(),
    ]
    if not has_all_buckets:
        can_be_published.append(outbox.c.bucket.in_(bindparam("buckets", expanding=True)))
    rows: Select[Any] = select(outbox.c.seq, outbox.c.headers, outbox.c.data, outbox.c.attempts)
    rows = by_index(rows, outbox, "ix_eventmesh_outbox_due_at")
    seq, due_at = bindparam("seq", type_=BigInteger), bindparam("due_at", type_=UtcDateTime)
    at_once = rows.where(
        outbox.c.due_at.is_(None),
        outbox.c.seq <= seq if up_to else outbox.c.seq > seq,
        *can_be_published,
    ).order_by(outbox.c.seq)
    delayed = rows.where(
        outbox.c.due_at <= now,
        outbox.c.due_at <= due_at if up_to else outbox.c.due_at > due_at,
        *can_be_published,
    ).order_by(outbox.c.due_at, outbox.c.seq)
    both = _first(at_once).union_all(_first(delayed)).subquery()
    return select(both).order_by(both.c.seq).limit(bindparam("most", type_=Integer))


def _first(query: Select[Any]) -> Select[Any]:
    # Wrapped, because SQLite takes no ORDER BY inside a UNION.
    return select(query.limit(bindparam("most", type_=Integer)).subquery())
