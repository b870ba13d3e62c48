"""What waits in the outbox and why, and what people decide on parked messages.

A parked message is one that the broker has rejected too often. Neither it nor what comes after it
with the same key is published until it is retried or skipped here. That is safe while relays run:
they publish only rows that they have read as not parked, and they delete or park such a row only
when their attempt is over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, case, delete, exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence import counts
from eventmesh.persistence.dialects.sql import refused_key
from eventmesh.persistence.outbox.settling import block_keys
from eventmesh.persistence.tables import outbox
from eventmesh.wire.envelope import Envelope

STATES = ("ready", "delayed", "rejected", "blocked", "parked")
"""Ready: a relay reads it next. Delayed: its publisher asked for that. Rejected: by the broker, and
it will be tried again. Blocked: it waits behind a rejected or parked message of its key. Parked:
until somebody retries or skips it."""

_AT_ONCE = 1000  # rows in one statement

_SKIPPED = "what came before it was skipped"

Where = ColumnElement[bool]
_Each = TypeVar("_Each")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message in the outbox. `error` is the broker's last reason for rejecting it, if it did."""

    seq: int
    envelope: Envelope
    state: str
    due_at: datetime | None
    attempts: int
    error: str
    size: int


@dataclass(frozen=True, slots=True)
class Share:
    """How many messages of a name are in a state; the most attempts that one of them has had."""

    name: str
    state: str
    number: int
    attempts: int


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """A key whose messages are not published; None for messages without one, which block nobody."""

    key: str | None
    parked: int
    blocked: int
    attempts: int


async def shares(connection: AsyncConnection, now: datetime) -> list[Share]:
    """All that waits, by name and state."""
    each = select(outbox.c.name, _state(now).label("state"), outbox.c.attempts).subquery()
    by = (each.c.name, each.c.state)
    rows = await connection.execute(
        select(*by, func.count(), func.max(each.c.attempts)).group_by(*by).order_by(*by)
    )
    return [Share(*row) for row in rows]


async def parked_keys(connection: AsyncConnection, limit: int) -> list[ParkedKey]:
    """The keys that have been parked for longest, up to `limit`."""
    rows = await connection.execute(
        select(outbox.c.key, func.count(), func.max(outbox.c.attempts))
        .where(*_parked())
        .group_by(outbox.c.key)
        .order_by(func.min(outbox.c.seq))
        .limit(limit)
    )
    found = list(rows)
    keys = [key for key, _, _ in found if key is not None]
    blocked: dict[str | None, int] = {}
    if keys:
        behind = select(outbox.c.key, func.count()).where(outbox.c.key.in_(keys), ~outbox.c.parked)
        blocked = dict((await connection.execute(behind.group_by(outbox.c.key))).all())
    return [
        ParkedKey(key, number, blocked.get(key, 0), attempts) for key, number, attempts in found
    ]


async def listed(
    connection: AsyncConnection,
    now: datetime,
    *,
    limit: int,
    parked: bool = False,
    key: str | None = None,
    name: str | None = None,
) -> list[Waiting]:
    """The oldest messages, without their data: only the parked ones, or those of this key or name,
    where that is asked for."""
    where: list[Where] = [*_parked()] if parked else []
    where += [outbox.c.key == key] if key is not None else []
    where += [outbox.c.name == name] if name is not None else []
    return await _read(connection, now, where, limit, data=False)


async def found(connection: AsyncConnection, now: datetime, ids: Collection[str]) -> list[Waiting]:
    """The messages with these ids that are in the outbox, with their data, the oldest first."""
    waiting = []
    for part in _parts(ids):
        waiting += await _read(connection, now, [outbox.c.id.in_(part)], None, data=True)
    return sorted(waiting, key=lambda each: each.seq)


async def related(
    connection: AsyncConnection,
    now: datetime,
    *,
    ids: Collection[str] = (),
    key: str | None = None,
    limit: int,
) -> list[Waiting]:
    """The oldest messages with one of these ids, or one of these as their correlation id, or with
    this key; without their data. Reads the whole outbox."""
    wanted, correlation_id = sorted(ids), outbox.c.headers["correlationid"].as_string()
    condition = outbox.c.id.in_(wanted) | correlation_id.in_(wanted)
    where = condition if key is None else outbox.c.key == key
    return await _read(connection, now, [where], limit, data=False)


async def retry(
    connection: AsyncConnection,
    now: datetime,
    *,
    ids: Collection[str] | None = None,
    key: str | None = None,
) -> list[str]:
    """Make parked messages due at once, in their old order, as if they had been rejected once;
    returns their ids. Those with these ids or this key, or else all."""
    where: list[Where] = [] if key is None else [outbox.c.key == key]
    those = [where] if ids is None else [[*where, outbox.c.id.in_(part)] for part in _parts(ids)]
    rows = sorted([row for each in those for row in await _lock(connection, each)])
    for seqs in _parts([seq for seq, _ in rows]):
        again = update(outbox).where(outbox.c.seq.in_(seqs))
        # With one attempt, so that they still block what comes after them. And due from now on,
        # because relays do not read again what was due long ago.
        await connection.execute(again.values(parked=False, attempts=1, due_at=now))
    return [message_id for _, message_id in rows]


async def skip(connection: AsyncConnection, seqs: Collection[int]) -> list[int]:
    """Delete those of these rows that are parked, so that what they blocked is published; returns
    their numbers."""
    those = [[outbox.c.seq.in_(part)] for part in _parts(sorted(seqs))]
    gone = [seq for each in those for seq, _ in await _lock(connection, each)]
    for part in _parts(gone):
        deleted = delete(outbox).where(outbox.c.seq.in_(part))
        found = list(await connection.execute(deleted.returning(outbox.c.key, outbox.c.headers)))
        skipped = Counter(counts.way_of("skipped", Envelope(headers, b"")) for _, headers in found)
        await counts.add_now(connection, skipped)
        keys = {key for key, _ in found if key is not None}
        await block_keys(connection, keys, _SKIPPED)
    return gone


async def _lock(connection: AsyncConnection, where: Sequence[Where]) -> list[tuple[int, str]]:
    """Numbers and ids of the parked rows among these, locked: nobody else retries or skips them."""
    rows = select(outbox.c.seq, outbox.c.id).where(*_parked(), *where).order_by(outbox.c.seq)
    return [
        (seq, message_id) for seq, message_id in await connection.execute(rows.with_for_update())
    ]


async def _read(
    connection: AsyncConnection,
    now: datetime,
    where: Sequence[Where],
    limit: int | None,
    *,
    data: bool,
) -> list[Waiting]:
    columns: list[Any] = [
        outbox.c.seq,
        outbox.c.headers,
        outbox.c.data if data else outbox.c.name,
        _state(now),
        outbox.c.due_at,
        outbox.c.attempts,
        outbox.c.last_error,
        func.length(outbox.c.data),
    ]
    rows = await connection.execute(
        select(*columns).where(*where).order_by(outbox.c.seq).limit(limit)
    )
    return [
        Waiting(
            seq,
            Envelope(headers, content if data else b""),
            state,
            due_at,
            attempts,
            error or "",
            size,
        )
        for seq, headers, content, state, due_at, attempts, error, size in rows
    ]


def _parked() -> tuple[Where, Where]:
    return outbox.c.parked, outbox.c.attempts > 0  # the index has only rows with attempts


def _state(now: datetime) -> ColumnElement[str]:
    """One of STATES."""
    first = outbox.alias("first")
    is_blocked = exists().where(
        first.c.attempts > 0,
        refused_key(first.c.key) == outbox.c.key,
        first.c.parked | (first.c.due_at > now) | (first.c.seq < outbox.c.seq),
    )
    return case(
        (outbox.c.parked, "parked"),
        ((outbox.c.due_at > now) & (outbox.c.attempts > 0), "rejected"),
        (outbox.c.due_at > now, "delayed"),
        (is_blocked, "blocked"),
        else_="ready",
    )


def _parts(these: Collection[_Each]) -> list[list[_Each]]:
    """In parts that are small enough for one statement."""
    rest = list(these)
    return [rest[begin : begin + _AT_ONCE] for begin in range(0, len(rest), _AT_ONCE)]
