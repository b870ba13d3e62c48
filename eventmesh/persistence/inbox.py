"""The inbox: which messages have taken effect in this database, by subscription; and so a journal.

A group enters ("claims") the ids of its messages first, in the transaction in which they are then
handled. An id that was there already belongs to a duplicate, which is skipped. Say that m1 was
handled before, and workers A and B both receive m2:

    A: claim m1, m2, m3      fresh: m2, m3; m1 is a duplicate
    B: claim m2              waits for A's transaction
    A: handles m2, m3, commits
    B:                       m2 is a duplicate (if A had rolled back: fresh)

Ids are unique unless a publisher makes them wrongly; then the second message would be skipped as a
duplicate of the first. So each row has a digest of its message, by which a claim finds out that an
id was used for another one.

The row is also the journal's entry: the message's name and key, the messages that it came from,
when it took effect and at which attempt. All of that is known when it is claimed, so it costs no
statement of its own. How long a handler took is known only afterwards, and is written for slow ones
only: a second statement that takes a fraction of a millisecond does not matter to a handler that
took SLOW, and would slow down one that took a tenth of a millisecond.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, lru_cache
from types import MappingProxyType
from typing import NamedTuple

import orjson
from sqlalchemy import Update, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from eventmesh.persistence import counts
from eventmesh.persistence.counts import Way
from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.tables import inbox
from eventmesh.storable import storable
from eventmesh.wire.envelope import Envelope

SLOW = 0.01
"""Seconds from which the journal tells how long a handler took."""

_LONGEST = 255  # bytes: a database with the encoding SQL_ASCII counts them as characters


class Entry(NamedTuple):
    """A message on its way into the inbox; all but `message_id` and `digest` is for the journal
    only."""

    message_id: str
    digest: int
    name: str | None = None
    key: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    attempt: int | None = None

    @classmethod
    def of(cls, envelope: Envelope, attempt: int, *, journal: bool = True) -> Entry:
        """The entry of a delivery. What a foreign publisher wrote is made to fit the database."""
        if not journal:
            return cls(envelope.unique_id, digest_of(envelope))
        causation_id = envelope.attributes.get("causationid")
        return cls(
            envelope.unique_id,
            digest_of(envelope),
            _storable_name(envelope.name),
            None if (key := envelope.key) is None else _storable(key),
            _storable(envelope.correlation_id),
            None if causation_id is None else _storable(causation_id),
            attempt,
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of claiming ids: those that are `fresh` were not in the inbox before. `digests`
    has the digest in the inbox for each id, None where there is none. `counted` are the fresh ones
    where the database has counted them as handled by the same statement."""

    fresh: set[str]
    digests: Mapping[str, int | None]
    counted: Mapping[Way, int] = field(default_factory=dict)

    def is_other(self, message_id: str, digest: int) -> bool:
        """Whether the id is in the inbox for another message than that of this digest."""
        return self.digests[message_id] not in (None, digest)


def digest_of(envelope: Envelope) -> int:
    """64 bits of a hash of what identifies a message: its name and its data. A bridge between
    brokers may change everything else on the way, and write the JSON of the data anew: so spaces,
    escapes and the order of keys do not count. But 1.0 is not 1."""
    content = hashlib.blake2b(envelope.name.encode(errors="surrogatepass"), digest_size=8)
    content.update(b"\n")
    content.update(_canonical(envelope.data))
    return int.from_bytes(content.digest(), signed=True)


def _canonical(data: bytes) -> bytes:
    """JSON in one spelling; anything else as it is. Takes about 2 µs for 300 bytes."""
    try:
        return orjson.dumps(orjson.loads(data), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # not JSON, or nested too deeply
        return data


async def claim(
    session: AsyncSession,
    subscription: str,
    entries: Collection[Entry],
    ways: Mapping[str, Way] = MappingProxyType({}),
) -> Claim:
    """Enter these messages in one statement, at the database's time. Of two with the same id, the
    first one counts. `ways` are the counters of these ids, for a database that counts them with it.

    An id that another transaction has entered, and not committed yet, is waited for.
    """
    first: dict[str, Entry] = {}
    for entry in entries:
        first.setdefault(entry.message_id, entry)
    # Sorted, so that two workers with the same messages wait for each other instead of deadlocking.
    ids = sorted(first)
    columns = zip(*[first[message_id] for message_id in ids], strict=True)
    by_name = dict(zip(Entry._fields, columns, strict=True))
    dialect = dialect_of(session.get_bind())

    def enter(sync: Session) -> set[str]:
        connection = sync.connection()
        statement, values = dialect.claim(inbox, subscription, by_name)
        if dialect.counts_with_claim and isinstance(values, dict):
            numbers = {way: number for number, way in enumerate(dict.fromkeys(ways.values()), 1)}
            values |= {
                "count_owner": counts.owner_of(connection),
                "count_way": [numbers[ways[message_id]] for message_id in ids] if ways else [],
                "way_source": [way.source for way in numbers],
                "way_name": [way.name for way in numbers],
            }
        return set(connection.execute(statement, values).scalars())

    fresh = await session.run_sync(enter)
    known: dict[str, int | None] = {message_id: first[message_id].digest for message_id in fresh}
    if len(fresh) < len(ids):
        known |= await _digests(session, subscription, set(ids) - fresh)
    counted = fresh & ways.keys() if dialect.counts_with_claim else ()
    return Claim(fresh, known, Counter(ways[message_id] for message_id in counted))


async def note_slow(session: AsyncSession, subscription: str, took: Mapping[str, float]) -> None:
    """Write down how many seconds handlers took, for messages that the same transaction has
    claimed."""
    rows = [
        {"of_subscription": subscription, "slow": message_id, "seconds": seconds}
        for message_id, seconds in took.items()
    ]
    await session.run_sync(lambda sync: sync.connection().execute(_note_slow(), rows))


@cache  # building a statement takes longer than running it
def _note_slow() -> Update:
    those = (
        inbox.c.subscription == bindparam("of_subscription"),
        inbox.c.message_id == bindparam("slow"),
    )
    return update(inbox).where(*those).values(took=bindparam("seconds"))


async def count_since(connection: AsyncConnection, moment: datetime) -> dict[str, int]:
    """How many messages have taken effect since then, by subscription; those without any are left
    out."""
    rows = await connection.execute(
        select(inbox.c.subscription, func.count())
        .where(inbox.c.received_at > moment)
        .group_by(inbox.c.subscription)
    )
    return dict(rows.all())


async def remembered(
    connection: AsyncConnection, subscription: str, message_ids: Collection[str]
) -> set[str]:
    """Which of these messages have taken effect."""
    found: set[str] = set()
    wanted = sorted(message_ids)
    for begin in range(0, len(wanted), 1_000):
        those = inbox.c.message_id.in_(wanted[begin : begin + 1_000])
        query = select(inbox.c.message_id).where(inbox.c.subscription == subscription, those)
        found.update(await connection.scalars(query))
    return found


async def unclaim(session: AsyncSession, subscription: str, message_ids: Sequence[str]) -> None:
    """Remove ids that the same transaction has claimed and did not handle."""
    await session.execute(
        delete(inbox).where(
            inbox.c.subscription == subscription, inbox.c.message_id.in_(message_ids)
        )
    )


async def _digests(
    session: AsyncSession, subscription: str, message_ids: set[str]
) -> dict[str, int | None]:
    """The digests in the inbox of these ids; None for rows that are older than digests, and for
    those that were purged in between."""
    rows = await session.execute(
        select(inbox.c.message_id, inbox.c.digest).where(
            inbox.c.subscription == subscription, inbox.c.message_id.in_(sorted(message_ids))
        )
    )
    return dict.fromkeys(message_ids) | dict(rows.all())


def _storable(text: str) -> str:
    """The text as every database can store it: without lone surrogates and NUL, and cut where it is
    too long."""
    if text.isascii() and len(text) <= _LONGEST and "\0" not in text:
        return text
    stored = storable(text).encode()
    if len(stored) > _LONGEST:
        stored = stored[: _LONGEST - len("…".encode())]
        return stored.decode(errors="ignore") + "…"
    return stored.decode()


_storable_name = lru_cache(maxsize=1024)(_storable)  # there are few; anybody can send others
