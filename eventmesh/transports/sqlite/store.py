"""The operations on a broker file, each in one transaction.

A row of `queue` is free (`owner` is null) or leased by a consumer until `leased_until`. A lease
does not change its place in the order (`due_at`, `sequence`), so a message that a consumer
returned, or leased before it died, comes before messages that were published later. A row with an
`ordering_key` is not free while another row of its key is leased.

The broker has a time of its own, which no change of the wall clock affects: the wall clock when the
file was created, and from then on counted by the machine's monotonic clock, which all processes
share. The table `clock` keeps the difference. For example, created at wall time 1,000,000 with the
monotonic clock at 50, `ahead` is 999,950; at monotonic 60 the time is 1,000,010. After a reboot the
monotonic clock starts near 0 again: times in the file then lie in the future, which shows that
`ahead` must be computed again.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import orjson

from eventmesh.clock import Clock
from eventmesh.private_files import make_private_file
from eventmesh.transports.base import (
    DeadLetter,
    Delivery,
    Order,
    Subscription,
    SubscriptionStats,
    Unrouted,
)
from eventmesh.transports.census import Census
from eventmesh.transports.dead_letters import UniqueDeadLetters, fingerprint, group_copies
from eventmesh.transports.facts import KnownSubscription
from eventmesh.transports.finding import Found, Located
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.sqlite import ordering, rows
from eventmesh.transports.sqlite.file import connect, file_at, identity_of, use_write_ahead_log
from eventmesh.transports.sqlite.schema import CLOCK_TABLE, NEVER, create_tables
from eventmesh.wire.envelope import Envelope

_CENSUS = """
WITH wanted AS (
    SELECT value AS subscription FROM json_each(:subscriptions)
    UNION SELECT binding.subscription FROM binding
    WHERE message IN (SELECT value FROM json_each(:messages))
), stored (subscription, state, attributes) AS (
    SELECT subscription,
        CASE WHEN owner IS NOT NULL THEN 'in_flight' WHEN due_at <= :now THEN 'ready'
             ELSE 'delayed' END,
        CAST(attributes AS TEXT) FROM queue WHERE subscription IN wanted
    UNION ALL
    SELECT subscription, 'dead', CAST(attributes AS TEXT)
    FROM dead_letter WHERE subscription IN wanted
    UNION ALL
    SELECT '', 'unrouted', CAST(attributes AS TEXT)
    FROM unrouted WHERE message IN (SELECT value FROM json_each(:messages))
), held AS (
    SELECT subscription, state,
        CASE WHEN json_valid(attributes) THEN attributes ELSE '{}' END AS attributes FROM stored
)
SELECT subscription, state, json_extract(attributes, '$.type') AS name,
    json_extract(attributes, '$.dataschema') AS dataschema,
    json_extract(attributes, '$.source') AS source,
    count(*), min(json_extract(attributes, '$.time'))
FROM held GROUP BY subscription, state, name, dataschema, source
"""

_FIND = """
WITH stored (subscription, state, attributes) AS (
    SELECT subscription,
        CASE WHEN owner IS NOT NULL THEN 'in_flight' WHEN due_at <= :now THEN 'ready'
             ELSE 'delayed' END,
        CAST(attributes AS TEXT) FROM queue
    WHERE subscription IN (SELECT value FROM json_each(:subscriptions))
    UNION ALL
    SELECT '', 'unrouted', CAST(attributes AS TEXT)
    FROM unrouted WHERE message IN (SELECT value FROM json_each(:messages))
), valid AS (SELECT * FROM stored WHERE json_valid(attributes)),
wanted AS (SELECT value FROM json_each(:wanted))
SELECT subscription, state, attributes FROM valid
WHERE json_extract(attributes, '$.id') IN wanted
    OR json_extract(attributes, '$.correlationid') IN wanted
    OR json_extract(attributes, '$.partitionkey') IN wanted
    OR json_extract(attributes, '$.subject') IN wanted
"""
_NAMED = "id IN (SELECT value FROM json_each(:values))"
_OF_MESSAGES = """
CASE WHEN json_valid(CAST(attributes AS TEXT))
     THEN json_extract(CAST(attributes AS TEXT), '$.id') IN (SELECT value FROM json_each(:values))
END
"""


class SqliteStore:
    """One connection to the file; used by one thread at a time."""

    def __init__(self, path: Path, clock: Clock) -> None:
        make_private_file(path)
        self.file = identity_of(path)
        self._connection = connect(path)
        use_write_ahead_log(self._connection)
        self._connection.text_factory = (
            rows.text
        )  # other programs may have written other bytes than UTF-8
        # FULL: confirmed messages survive a power cut, as the deletion from the outbox does.
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._transaction() as connection:
            create_tables(connection, path)
        if file_at(path) != self.file:
            raise FileNotFoundError("it was deleted or replaced while it was opened")
        self._clock = clock
        self._ahead = self._anchor()

    def now(self) -> float:
        """The broker's time; see the module."""
        return self._clock.monotonic() + self._ahead

    def close(self) -> None:
        self._connection.close()

    def declare(self, subscriptions: Sequence[Subscription]) -> bool:
        """Create missing subscriptions; returns whether there were any."""
        wanted = {(message, s.name) for s in subscriptions for message in s.messages}
        known = set(self._connection.execute("SELECT message, subscription FROM binding"))
        changed = ordering.changed(self._connection, subscriptions)
        if wanted <= known and not changed:
            return False
        with self._transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO binding VALUES (?, ?)", wanted)
            for message, subscription in sorted(wanted - known):
                connection.execute(
                    "INSERT INTO queue (subscription, attributes, data, due_at)"
                    " SELECT ?, attributes, data, published_at FROM unrouted"
                    " WHERE message = ? ORDER BY sequence",
                    (subscription, message),
                )
            ordering.declare(connection, subscriptions, self.now())
            connection.executemany(
                "DELETE FROM unrouted WHERE message = ?", [(message,) for message, _ in wanted]
            )
        return True

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        with self._transaction() as connection:
            now = self.now()
            bindings = defaultdict(list)
            for message, subscription in connection.execute("SELECT * FROM binding"):
                bindings[message].append(subscription)
            ordered = ordering.known(connection)
            queued, in_order, unrouted = [], [], []
            for envelope in envelopes:
                attributes = orjson.dumps(dict(envelope.attributes))
                for subscription in bindings[envelope.name]:
                    stored = (subscription, attributes, envelope.data)
                    if subscription in ordered:
                        in_order.append((*stored, envelope.key or "", now))
                    else:
                        queued.append((*stored, now))
                if not bindings[envelope.name]:
                    unrouted.append((envelope.name, attributes, envelope.data, now))
            if in_order:
                ordering.enqueue(connection, in_order)
                connection.execute("UPDATE clock SET latest = max(latest, ?)", (now,))
            connection.executemany(
                "INSERT INTO queue (subscription, attributes, data, due_at) VALUES (?, ?, ?, ?)",
                queued,
            )
            connection.executemany(
                "INSERT INTO unrouted (message, attributes, data, published_at)"
                " VALUES (?, ?, ?, ?)",
                unrouted,
            )

    def lease(self, subscription: str, owner: str, limit: int, lease_time: float) -> list[Delivery]:
        """Lease due messages, in order. If none is due, no write lock is taken."""
        seconds = self.next_in(subscription)
        if seconds is None or seconds > 0:
            return []
        with self._transaction() as connection:
            now = self.now()
            connection.execute(
                "UPDATE queue SET owner = NULL, leased_until = NULL"
                " WHERE subscription = ? AND owner IS NOT NULL AND leased_until <= ?",
                (subscription, now),
            )
            leased = connection.execute(
                "UPDATE queue SET owner = ?, leased_until = ?, deliveries = deliveries + 1"  # noqa: S608  # our own text
                " WHERE sequence IN (SELECT sequence FROM queue AS free"
                f"  WHERE subscription = ? AND due_at <= ? AND {ordering.FREE}"
                "  ORDER BY due_at, sequence LIMIT ?)"
                " RETURNING due_at, sequence, attributes, data, attempt, deliveries",
                (owner, now + lease_time, subscription, now, limit),
            ).fetchall()
        return [
            rows.delivery(sequence, attributes, data, attempt, deliveries)
            for _, sequence, attributes, data, attempt, deliveries in sorted(leased)
        ]

    def next_in(self, subscription: str) -> float | None:
        """Seconds until the next message of the subscription can be leased; None if it has none."""
        row = self._connection.execute(
            "SELECT min(at) FROM (SELECT * FROM ("  # noqa: S608  # our own text
            f" SELECT due_at AS at FROM queue AS free WHERE subscription = ?1 AND {ordering.FREE}"
            "  ORDER BY due_at LIMIT 1) UNION ALL"
            " SELECT min(leased_until) FROM queue WHERE subscription = ?1 AND owner IS NOT NULL)",
            (subscription,),
        ).fetchone()
        at = row[0]  # another program may have written a text, which is never due
        return float(at - self.now()) if isinstance(at, float | int) else None

    def settle(
        self,
        owner: str,
        settlements: Sequence[tuple[Delivery, Outcome]],
        letter_ids: Sequence[str],
        died_at: datetime,
        order: Order | None = None,
    ) -> None:
        """Settle deliveries, skipping those that another consumer has leased meanwhile: each
        statement names the owner."""
        done, delayed, dead, holding = [], [], [], []
        for (delivery, outcome), letter_id in zip(settlements, letter_ids, strict=True):
            match outcome:
                case Done():
                    done.append((delivery.token, owner))
                case RetryAfter(delay):
                    delayed.append((delay, delivery.token, owner))
                    holding.append((delivery, delay))
                case Dead(reason, error):
                    holds = order is not None and order.after_dead == "hold"
                    death = (letter_id, reason, error, died_at.timestamp(), holds)
                    dead.append((*death, delivery.token, owner))
                    done.append((delivery.token, owner))
                    holding.append((delivery, NEVER if holds else 0.0))
        with self._transaction() as connection:
            now = self.now()
            if order is not None:
                for delivery, delay in holding:
                    ordering.hold_back(connection, owner, delivery.token, now + delay)
            connection.executemany(
                "INSERT INTO dead_letter"
                " SELECT ?, subscription, attributes, data, ?, ?, attempt, ?,"
                " sequence, ordering_key, ? FROM queue WHERE sequence = ? AND owner = ?",
                dead,
            )
            connection.executemany("DELETE FROM queue WHERE sequence = ? AND owner = ?", done)
            connection.executemany(
                "UPDATE queue SET due_at = ?, attempt = attempt + 1, deliveries = 0,"
                " owner = NULL, leased_until = NULL WHERE sequence = ? AND owner = ?",
                [(now + delay, token, owner) for delay, token, owner in delayed],
            )
            if delayed:
                connection.execute("UPDATE clock SET latest = max(latest, ?)", (now,))

    def renew(self, owner: str, lease_time: float) -> None:
        with self._transaction() as connection:
            connection.execute(
                "UPDATE queue SET leased_until = ? WHERE owner = ?",
                (self.now() + lease_time, owner),
            )

    def release(self, owner: str, handed_out: Iterable[int]) -> None:
        """End this owner's leases; only messages that `receive` returned count as delivered."""
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE queue SET owner = NULL, leased_until = NULL"
                " WHERE sequence = ? AND owner = ?",
                [(sequence, owner) for sequence in handed_out],
            )
            connection.execute(
                "UPDATE queue SET owner = NULL, leased_until = NULL, deliveries = deliveries - 1"
                " WHERE owner = ?",
                (owner,),
            )

    def stats(self, subscription: str) -> SubscriptionStats:
        now = self.now()
        ready, delayed, in_flight, oldest, held = self._connection.execute(
            "SELECT count(*) FILTER (WHERE owner IS NULL AND due_at <= ?2),"
            " count(*) FILTER (WHERE owner IS NULL AND due_at > ?2), count(owner),"
            " min(due_at) FILTER (WHERE owner IS NULL AND due_at <= ?2),"
            " count(ordering_key) FILTER (WHERE owner IS NULL AND due_at > ?2)"
            # One of each key is itself to be retried, unless a dead letter holds all of them.
            " - count(DISTINCT CASE WHEN owner IS NULL AND due_at > ?2 AND due_at < ?3"
            "                       THEN ordering_key END)"
            " FROM queue WHERE subscription = ?1",
            (subscription, now, NEVER),
        ).fetchone()
        [dead] = self._connection.execute(
            "SELECT count(*) FROM dead_letter WHERE subscription = ?", (subscription,)
        ).fetchone()
        [declared] = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM binding WHERE subscription = ?)", (subscription,)
        ).fetchone()
        return SubscriptionStats(
            ready,
            delayed,
            in_flight,
            dead,
            oldest_age=None if oldest is None else max(now - oldest, 0.0),
            declared=bool(declared),
            unknown={"consumers": "a SQLite file does not record who reads it"},
            held=held,
        )

    def subscriptions(self) -> list[KnownSubscription]:
        """All subscriptions, whoever declared them."""
        found = self._connection.execute(
            "SELECT subscription, (SELECT count(*) FROM queue AS held"
            " WHERE held.subscription = bound.subscription), json_group_array(message)"
            " FROM binding AS bound GROUP BY subscription ORDER BY subscription"
        )
        return [
            KnownSubscription(name, waiting, dict.fromkeys(json.loads(messages)))
            for name, waiting, messages in found
        ]

    def census(self, subscriptions: Collection[str], messages: Collection[str]) -> Census:
        """Count in one statement, so that nothing moves meanwhile. It blocks no writer."""
        found = Census()
        counted = self._connection.execute(
            _CENSUS,
            {
                "now": self.now(),
                "subscriptions": orjson.dumps(sorted(subscriptions)).decode(),
                "messages": orjson.dumps(sorted(messages)).decode(),
            },
        )
        for subscription, state, name, dataschema, source, number, made_at in counted:
            texts = {"type": name, "dataschema": dataschema, "source": source, "time": made_at}
            attributes = {key: text for key, text in texts.items() if isinstance(text, str)}
            found.add(subscription, Envelope(attributes, b""), state, number)
        return found

    def find(
        self, subscriptions: Collection[str], messages: Collection[str], wanted: Collection[str]
    ) -> Found:
        """Find messages in one statement, so that nothing moves meanwhile. It blocks no writer."""
        held = self._connection.execute(
            _FIND,
            {
                "now": self.now(),
                "subscriptions": orjson.dumps(sorted(subscriptions)).decode(),
                "messages": orjson.dumps(sorted(messages)).decode(),
                "wanted": orjson.dumps(sorted(wanted)).decode(),
            },
        )
        return Found(
            tuple(
                Located(name, state, rows.delivery(0, attributes, b"", 1, 1).envelope)
                for name, state, attributes in held
            )
        )

    def count_unrouted(self, messages: Collection[str]) -> list[Unrouted]:
        """Count these unrouted messages; reads the index only."""
        found = self._connection.execute(
            "SELECT message, count(*) FROM unrouted"
            " WHERE message IN (SELECT value FROM json_each(?)) GROUP BY message",
            (orjson.dumps(sorted(messages)).decode(),),
        )
        return [Unrouted(message, number) for message, number in found]

    def unrouted(self) -> list[Unrouted]:
        """All unrouted messages, with age and size."""
        now = self.now()
        found = self._connection.execute(
            "SELECT message, count(*), min(published_at), sum(length(data)) FROM unrouted"
            " GROUP BY message ORDER BY message"
        )
        return [
            Unrouted(message, number, max(now - oldest, 0.0), size)
            for message, number, oldest, size in found
        ]

    def purge_unrouted(self, message: str, keep: int, older_than: float | None, limit: int) -> int:
        """Delete at most `limit` unrouted messages. No subscription wants them: `declare` moves
        rows out of this table in the transaction that creates a subscription."""
        with self._transaction() as connection:
            [number] = connection.execute(
                "SELECT count(*) FROM unrouted WHERE message = ?", (message,)
            ).fetchone()
            before = self.now() - older_than if older_than is not None else float("inf")
            return connection.execute(
                "DELETE FROM unrouted WHERE sequence IN (SELECT sequence FROM unrouted"
                " WHERE message = ? AND published_at < ? ORDER BY sequence LIMIT ?)",
                (message, before, min(max(number - keep, 0), limit)),
            ).rowcount

    def dead_letters(
        self,
        subscription: str,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> list[DeadLetter]:
        """See `UniqueDeadLetters`."""
        found = (
            self._letters(subscription)
            if only is None
            else self._letters(subscription, "id IN (SELECT value FROM json_each(:values))", only)
        )
        return UniqueDeadLetters(limit, most_bytes, only).add_all(found)

    def _letters(
        self, subscription: str, condition: str = "TRUE", values: Collection[str] = ()
    ) -> Iterator[DeadLetter]:
        """The dead letters that meet this SQL condition, in which `:values` is a JSON array."""
        found = self._connection.execute(
            "SELECT id, attributes, data, reason, error, attempts, died_at FROM dead_letter"  # noqa: S608  # our own text
            f" WHERE subscription = :subscription AND {condition} ORDER BY id",
            # Not orjson, which fails on ids with lone surrogates, as a terminal may pass them.
            {"subscription": subscription, "values": json.dumps(sorted(values))},
        )
        return (rows.dead_letter(subscription, *row) for row in found)

    def replay(
        self, subscription: str, ids: Sequence[str], edited: Mapping[str, bytes]
    ) -> list[str]:
        """Queue each message once, with its edited data if there is any, and delete all its dead
        letters."""
        groups = self._copies(subscription, ids)
        with self._transaction() as connection:
            now = self.now()
            connection.executemany(
                # In its old place, if its subscription is ordered.
                "INSERT INTO queue (sequence, subscription, attributes, data, ordering_key, due_at)"  # noqa: S608  # our own text
                " SELECT iif(ordering_key IS NULL, NULL, sequence), subscription, attributes,"
                f" coalesce(?2, data), ordering_key, {ordering.IN_ITS_PLACE} FROM dead_letter"
                " WHERE subscription = ?3 AND id IN (SELECT value FROM json_each(?4))"
                " ORDER BY id LIMIT 1",
                [
                    (
                        now,
                        next((edited[each] for each in group if each in edited), None),
                        subscription,
                        json.dumps(group),
                        NEVER,
                    )
                    for group in groups
                ],
            )
            return self._delete(connection, subscription, groups, ids)

    def discard(self, subscription: str, ids: Sequence[str]) -> list[str]:
        """Delete all dead letters of these messages."""
        groups = self._copies(subscription, ids)
        with self._transaction() as connection:
            return self._delete(connection, subscription, groups, ids)

    def _copies(self, subscription: str, ids: Sequence[str]) -> Sequence[Sequence[str]]:
        """See `group_copies`. Runs before the transaction, for which publishers must wait; dead
        letters that are deleted in between are not found by it."""
        named = list(self._letters(subscription, _NAMED, ids))
        messages = {letter.envelope.id for letter in named if letter.envelope.id}
        same = self._letters(subscription, _OF_MESSAGES, messages) if messages else ()
        letters = {letter.id: fingerprint(letter) for letter in (*named, *same)}
        return group_copies(sorted(letters.items()), ids)

    def _delete(
        self,
        connection: sqlite3.Connection,
        subscription: str,
        groups: Sequence[Sequence[str]],
        ids: Sequence[str],
    ) -> list[str]:
        """Delete these dead letters; returns the ids that were deleted."""
        deleted = connection.execute(
            "DELETE FROM dead_letter WHERE subscription = ?"
            " AND id IN (SELECT value FROM json_each(?)) RETURNING id, holds_key, ordering_key",
            (subscription, json.dumps([letter_id for group in groups for letter_id in group])),
        ).fetchall()
        keys = [key for _, holds, key in deleted if holds]
        ordering.release(connection, subscription, keys, self.now())
        found = {letter_id for letter_id, _, _ in deleted}
        return [letter_id for letter_id in dict.fromkeys(ids) if letter_id in found]

    def _anchor(self) -> float:
        """How far the broker's time is ahead of the monotonic clock, until the next reboot."""
        monotonic, wall = self._clock.monotonic(), self._clock.now().timestamp()
        with self._transaction() as connection:
            connection.execute(CLOCK_TABLE)
            row = connection.execute("SELECT ahead, latest FROM clock").fetchone()
            [published] = connection.execute(
                # A first attempt is due when it is published, a retry some time later.
                # With an order, it may be held back: then `latest` tells when it was published.
                "SELECT max(at) FROM (SELECT max(due_at) AS at FROM queue"
                " WHERE attempt = 1 AND ordering_key IS NULL"
                " UNION ALL SELECT max(published_at) FROM unrouted)"
            ).fetchone()
            ahead, latest = row or (wall - monotonic, 0.0)
            floor = max(latest, published or 0.0)
            if monotonic + ahead < floor:
                ahead = max(wall, floor) - monotonic
            if row is None or ahead != row[0]:
                connection.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?)", (ahead, floor))
        return float(ahead)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # IMMEDIATE waits for the write lock at the start, so that no statement fails half-way.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
