"""Counters of messages, kept in the transactions that move them, so that an audit can add them up.

A counter says how many messages of a name have gone one way since counting began:

| way         | counted with                                   | of                              |
|-------------|------------------------------------------------|---------------------------------|
| `stored`    | the insert into the outbox                     | publishing service, name        |
| `relayed`   | the deletion of rows that the broker confirmed | publishing service, name        |
| `skipped`   | an operator's deletion of a parked message     | publishing service, name        |
| `handled`   | the message's effects                          | subscription, publisher, name   |
| `discarded` | an operator's deletion of a dead letter        | subscription, publisher, name   |
| `forgotten` | the purge of the inbox                         | subscription                    |
| `accepted`  | a difference that an operator has explained    | subscription, publisher, name   |
| `declared`  | nothing; `since` is when a worker declared it  | subscription, name              |

As each is written by the transaction that it counts, a kill at any moment counts neither too much
nor too little: a message that a killed relay has published twice leaves the outbox once, and a
duplicate that the inbox skips is not handled.

Every database connection has rows of its own, because a connection has one transaction at a time:
so nobody waits for a counter. The number is the sum over all of them. Rows of connections that have
counted nothing for a while are folded into one, which is nobody's.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Connection,
    Insert,
    Select,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    null,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.base import Dialect
from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import count, inbox, outbox
from eventmesh.wire.envelope import Envelope

NOBODY = ""
"""The owner of rows that were folded."""

_OWNER = "eventmesh_count_owner"
_AT_ONCE = 500  # rows that are folded in one transaction


class Way(NamedTuple):
    """What is counted together. `subscription` and `source` are empty where they do not apply;
    `source` is the publishing service."""

    what: str
    subscription: str
    source: str
    name: str


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of a counter, and since when it is counted."""

    way: Way
    number: int
    since: datetime


def way_of(what: str, envelope: Envelope, subscription: str = "") -> Way:
    """How a message is counted."""
    return _way(what, subscription, publisher_of(envelope), envelope.name[:255])


@lru_cache(maxsize=1024)  # there are few; bounded, because anybody can send others
def _way(what: str, subscription: str, source: str, name: str) -> Way:
    return Way(what, subscription, source, name)


def publisher_of(envelope: Envelope) -> str:
    """The service that published a message, as its source says."""
    return envelope.attributes.get("source", "")[1:64]


def owner_of(connection: Connection | AsyncConnection) -> str:
    """Whose rows this connection counts in."""
    owner: str = connection.info.setdefault(_OWNER, uuid.uuid4().hex)
    return owner


def add(connection: Connection, numbers: Mapping[Way, int]) -> None:
    """Count, in the connection's transaction."""
    _add(connection, numbers, owner_of(connection))


def columns(connection: Connection, numbers: Mapping[Way, int]) -> dict[str, Any]:
    """What to count, for a statement that does it with something else."""
    ways = sorted(numbers)
    lists = {f"count_{part}": [getattr(way, part) for way in ways] for part in Way._fields}
    return {
        "count_owner": owner_of(connection),
        "count_number": [numbers[way] for way in ways],
        **lists,
    }


async def add_now(connection: AsyncConnection, numbers: Mapping[Way, int]) -> None:
    """As `add`."""
    await connection.run_sync(add, numbers)


def _add(connection: Connection, numbers: Mapping[Way, int], owner: str) -> None:
    # Sorted, so that two transactions that add to the folded rows cannot deadlock.
    rows = [
        {"new_owner": owner, "new_number": number}
        | {f"new_{column}": value for column, value in way._asdict().items()}
        for way, number in sorted(numbers.items())
    ]
    if rows:
        connection.execute(_add_statement(dialect_of(connection)), rows)


@dataclass(frozen=True, slots=True)
class Books:
    """All counters of a database, and what there was in its tables at the same moment."""

    totals: tuple[Total, ...] = ()
    outbox: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """How many messages wait, by publishing service, name and state: due, delayed by the publisher,
    rejected by the broker and to be tried again, or parked."""
    inbox: Mapping[str, int] = field(default_factory=dict)
    """How many messages each subscription remembers."""

    def number(self, way: Way) -> int:
        """The sum of a counter."""
        return sum(each.number for each in self.totals if each.way == way)


async def read_books(connection: AsyncConnection, now: datetime) -> Books:
    """Read counters and tables by one statement, so that nothing moves in between."""
    totals, stock, memory = [], {}, {}
    rows = await connection.execute(_books(), {"now": now})
    for table, what, subscription, source_, name, number, since in rows:
        if table == "count":
            totals.append(Total(Way(what, subscription, source_, name), number, since))
        elif table == "outbox":
            stock[source_, name, what] = number
        else:
            memory[subscription] = number
    return Books(tuple(totals), stock, memory)


@cache
def _books() -> CompoundSelect[Any]:
    columns = (count.c.what, count.c.subscription, count.c.source, count.c.name)
    counted = select(
        literal("count").label("table"),
        *columns,
        cast(func.sum(count.c.number), BigInteger).label("number"),
        func.min(count.c.since).label("since"),
    ).group_by(*columns)
    state = case(
        (outbox.c.parked, "parked"),
        (outbox.c.attempts > 0, "rejected"),
        (outbox.c.due_at > bindparam("now", type_=outbox.c.due_at.type), "delayed"),
        else_="due",
    )
    source = func.substr(func.coalesce(outbox.c.headers["source"].as_string(), ""), 2, 63)
    each = select(state.label("state"), source.label("source"), outbox.c.name).subquery()
    waiting = select(
        literal("outbox"),
        each.c.state,
        literal(""),
        each.c.source,
        each.c.name,
        func.count(),
        null(),
    ).group_by(each.c.state, each.c.source, each.c.name)
    remembered = select(
        literal("inbox"),
        literal(""),
        inbox.c.subscription,
        literal(""),
        literal(""),
        func.count(),
        null(),
    ).group_by(inbox.c.subscription)
    return counted.union_all(waiting, remembered)


def declare(connection: Connection, pairs: Iterable[tuple[str, str]]) -> None:
    """Record, by subscription and name, that these are declared now, unless they were before."""
    rows = [
        {"owner": NOBODY, "what": "declared", "subscription": each, "source": "", "name": name}
        for each, name in sorted(pairs)
    ]
    if rows:
        connection.execute(_declare_statement(dialect_of(connection)), rows)


def fold(connection: Connection, before: datetime) -> int:
    """Add rows that were not counted in since then to those of nobody, which keep the earliest
    `since`; returns how many. A row that a transaction counts in at this moment is left alone, and
    the transaction not waited for."""
    found, since = Counter[Way](), dict[Way, datetime]()
    folded = 0
    for row in list(connection.execute(_idle(), {"before": before})):
        owner, *keys, number, began, updated_at = row
        way = Way(*keys)
        same = [key == value for key, value in zip(_KEYS, (owner, *way), strict=True)]
        gone = connection.execute(delete(count).where(*same, count.c.updated_at == updated_at))
        if gone.rowcount:
            found[way] += number
            since[way] = min(began, since.get(way, began))
            folded += 1
    _add(connection, found, NOBODY)
    # The audit compares the first message with when a subscription was declared.
    for way, began in sorted(since.items()):
        same = [key == value for key, value in zip(_KEYS, (NOBODY, *way), strict=True)]
        connection.execute(update(count).where(*same, count.c.since > began).values(since=began))
    return folded


_KEYS = (count.c.owner, count.c.what, count.c.subscription, count.c.source, count.c.name)


@cache
def _idle() -> Select[Any]:
    idle = select(*_KEYS, count.c.number, count.c.since, count.c.updated_at).where(
        count.c.owner != NOBODY,
        count.c.updated_at < bindparam("before", type_=count.c.updated_at.type),
    )
    return idle.limit(_AT_ONCE).with_for_update(skip_locked=True)


@cache
def _declare_statement(dialect: Dialect) -> Insert:
    now = database_now()
    return dialect.insert_absent(count).values(number=0, since=now, updated_at=now)


@cache
def _add_statement(dialect: Dialect) -> Insert:
    now = database_now()
    new: dict[str, Any] = {
        column: bindparam(f"new_{column}", type_=count.c[column].type)
        for column in ("owner", *Way._fields, "number")
    }
    return dialect.upsert(
        count,
        ["owner", *Way._fields],
        new | {"since": now, "updated_at": now},
        {"number": count.c.number + new["number"], "updated_at": now},
    )
