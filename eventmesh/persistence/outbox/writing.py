"""Inserting the messages of a transaction into the outbox."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, select

from eventmesh.persistence import counts
from eventmesh.persistence.counts import Way
from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import BUCKETS, outbox
from eventmesh.wire.envelope import Envelope, part_of

_NOW = select(database_now())


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that goes to the outbox with its transaction, to be published after `delay`
    seconds at the earliest."""

    envelope: Envelope
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Stored:
    """A message in the outbox, and the number of its row."""

    seq: int
    outgoing: Outgoing


def bucket_of(key: str | None, message_id: str) -> int:
    """The bucket of a key, or of a message without one."""
    return part_of(key, message_id, BUCKETS)


def store(
    connection: Connection,
    messages: Sequence[Outgoing],
    *,
    ordered: bool = False,
    now: datetime | None = None,
    counted: Mapping[Way, int] = MappingProxyType({}),
) -> list[Stored]:
    """Insert these messages in one statement, in their order; returns them with their numbers. When
    a delayed one is due is reckoned from `now`, or else from the time by the database's clock.
    They are counted with it, or by another one, as is what else the transaction has `counted`.

    With `ordered`, on PostgreSQL, transactions with messages of one key wait for each other: each
    locks the keys of its messages until it ends. So their row numbers, by which relays publish,
    have the order of their commits. SQLite has one writer at a time, so there they have it anyway.
    """
    dialect = dialect_of(connection)
    if ordered:
        keys = {message.envelope.key for message in messages}
        # Sorted, so that two transactions cannot deadlock. Keys that share a number wait in vain.
        dialect.lock_keys(
            connection, sorted({part_of(key, "", 2**31) for key in keys if key is not None})
        )
    if now is None and not dialect.adds_delays and any(message.delay for message in messages):
        now = connection.scalar(_NOW)
    rows = [_row(message, now) for message in messages]
    stored = Counter(counts.way_of("stored", message.envelope) for message in messages)
    to_count = {**counted, **stored}
    statement, values = dialect.insert_outbox(outbox, rows)
    if dialect.counts_with_insert and isinstance(values, dict):
        values = values | counts.columns(connection, to_count)
    numbers = connection.execute(statement, values).scalars().all()
    if not dialect.counts_with_insert:
        counts.add(connection, to_count)
    return [Stored(*each) for each in zip(sorted(numbers), messages, strict=True)]


def _row(message: Outgoing, now: datetime | None) -> dict[str, Any]:
    envelope = message.envelope
    return {
        "id": envelope.id,
        "name": envelope.name,
        "key": envelope.key,
        "bucket": bucket_of(envelope.key, envelope.id),
        "headers": envelope.attributes,
        "data": envelope.data,
        "due_at": now + timedelta(seconds=message.delay) if now and message.delay else None,
        "delay": message.delay if message.delay and not now else None,
    }
