"""What a database knows of single messages, and of those that came from them.

A question names ids, or a key. The answer has the messages with one of these ids, and all that
belong to a chain of causes which began with one of them: they have its id as their correlation id.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import and_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.tables import inbox, start

MOST_SEARCHED = 1_000_000
"""How many messages of a journal are searched for a key: about two seconds of a database's time."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A message that has taken effect. All but the first three are None where the row was written
    without a journal; `took` is in seconds, and None for a fast handler."""

    subscription: str
    message_id: str
    at: datetime
    name: str | None
    key: str | None
    correlation_id: str | None
    causation_id: str | None
    attempt: int | None
    took: float | None


@dataclass(frozen=True, slots=True)
class Begun:
    """A message that was delivered suspiciously often, whose handling began `times` times and has
    not ended."""

    subscription: str
    message_id: str
    times: int
    at: datetime


_COLUMNS = (
    inbox.c.subscription,
    inbox.c.message_id,
    inbox.c.received_at,
    inbox.c.name,
    inbox.c.key,
    inbox.c.correlation_id,
    inbox.c.causation_id,
    inbox.c.attempt,
    inbox.c.took,
)


async def handled(
    connection: AsyncConnection, subscriptions: Collection[str], ids: Collection[str], most: int
) -> list[Handled]:
    """The messages with these ids that took effect in these subscriptions, and all those with one
    of these correlation ids; oldest first, `most` at the most. Found by indexes."""
    wanted = sorted(ids)
    by_id = and_(inbox.c.subscription.in_(sorted(subscriptions)), inbox.c.message_id.in_(wanted))
    found: dict[tuple[str, str], Handled] = {}
    for condition in (by_id, inbox.c.correlation_id.in_(wanted)):
        query = select(*_COLUMNS).where(condition).order_by(inbox.c.received_at).limit(most)
        for row in await connection.execute(query):
            each = Handled(*row)
            found[each.subscription, each.message_id] = each
    return sorted(found.values(), key=lambda each: each.at)[:most]


async def handled_of_key(connection: AsyncConnection, key: str, most: int) -> list[Handled]:
    """The messages with this key that took effect, the newest `most`, oldest first, among the
    newest MOST_SEARCHED of the journal. There is no index by key, which every message would have to
    pay for: the journal is read from its end."""
    newest = select(*_COLUMNS).order_by(inbox.c.received_at.desc()).limit(MOST_SEARCHED).subquery()
    query = select(newest).where(newest.c.key == key).order_by(newest.c.received_at.desc())
    return [Handled(*row) for row in await connection.execute(query.limit(most))][::-1]


async def searched_since(connection: AsyncConnection) -> datetime | None:
    """When the oldest message took effect that a search for a key looks at; None if it looks at
    all."""
    newest = select(inbox.c.received_at).order_by(inbox.c.received_at.desc())
    first: datetime | None = await connection.scalar(newest.offset(MOST_SEARCHED).limit(1))
    return first


async def begun(
    connection: AsyncConnection, subscriptions: Collection[str], ids: Collection[str]
) -> list[Begun]:
    """Which of these messages, in these subscriptions, are being handled again and again."""
    query = select(start.c.subscription, start.c.message_id, start.c.starts, start.c.begun_at)
    rows = await connection.execute(
        query.where(
            start.c.subscription.in_(sorted(subscriptions)), start.c.message_id.in_(sorted(ids))
        )
    )
    return [Begun(*row) for row in rows]
