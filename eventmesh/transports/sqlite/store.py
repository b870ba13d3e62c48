"""The tables of the SQLite broker, and one transaction for each thing done to them.

`queue` has one row for each message and subscription. A row is free (`owner` is null) or leased
until `leased_until`; it keeps its place in the order (`due_at`, `sequence`) through a lease, so
what a worker gives back, or lost by dying, comes before what was published later.

Times are the broker's own: seconds since 1970 when the file was first opened, and from then on
counted by the machine's monotonic clock, which all its processes share. So nobody sets them back
or forward. `clock` keeps by how much they are ahead of that clock; a restart of the machine, where
the monotonic clock begins anew, is noticed when times of the file would lie in the future.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import orjson

from eventmesh.clock import Clock
from eventmesh.errors import Drift
from eventmesh.private_files import make_private_file
from eventmesh.transports.base import (
    DeadLetter,
    Delivery,
    Subscription,
    SubscriptionStats,
    Unrouted,
)
from eventmesh.transports.census import Census
from eventmesh.transports.dead_letters import fingerprint, group_copies, without_copies
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.transports.sqlite import rows
from eventmesh.wire.envelope import Envelope

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another process's transaction."""

_VERSION = 1
_TABLES = """
CREATE TABLE binding (
    message TEXT NOT NULL, subscription TEXT NOT NULL, PRIMARY KEY (message, subscription)
) WITHOUT ROWID;
CREATE TABLE queue (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL,
    attributes BLOB NOT NULL,
    data BLOB NOT NULL,
    due_at REAL NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1 CHECK (attempt >= 1),
    deliveries INTEGER NOT NULL DEFAULT 0 CHECK (deliveries >= 0),
    owner TEXT,
    leased_until REAL,
    CHECK ((owner IS NULL) = (leased_until IS NULL))
);
CREATE INDEX queue_free ON queue (subscription, due_at, sequence) WHERE owner IS NULL;
CREATE INDEX queue_leased ON queue (subscription, leased_until) WHERE owner IS NOT NULL;
CREATE INDEX queue_owner ON queue (owner) WHERE owner IS NOT NULL;
CREATE TABLE unrouted (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    message TEXT NOT NULL,
    attributes BLOB NOT NULL,
    data BLOB NOT NULL,
    published_at REAL NOT NULL
);
CREATE INDEX unrouted_message ON unrouted (message);
CREATE TABLE dead_letter (
    id TEXT PRIMARY KEY,
    subscription TEXT NOT NULL,
    attributes BLOB NOT NULL,
    data BLOB NOT NULL,
    reason TEXT NOT NULL,
    error TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    died_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX dead_letter_subscription ON dead_letter (subscription, id);
"""
_CLOCK = """
CREATE TABLE IF NOT EXISTS clock (
    id INTEGER PRIMARY KEY CHECK (id = 1), ahead REAL NOT NULL, latest REAL NOT NULL
)
"""
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
    count(*), min(json_extract(attributes, '$.time'))
FROM held GROUP BY subscription, state, name, dataschema
"""
_NAMED = "id IN (SELECT value FROM json_each(:values))"
_OF_MESSAGES = """
CASE WHEN json_valid(CAST(attributes AS TEXT))
     THEN json_extract(CAST(attributes AS TEXT), '$.id') IN (SELECT value FROM json_each(:values))
END
"""


File = tuple[int, int]
"""A file, whatever its name: device and inode."""


def file_at(path: Path) -> File | None:
    """The file to which the path leads now; None where there is none."""
    try:
        return _identity(path)
    except OSError:
        return None


def _identity(path: Path) -> File:
    found = path.stat()
    return found.st_dev, found.st_ino


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file, which is not made where there is none."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
    )


class SqliteStore:
    """One connection to the file."""

    def __init__(self, path: Path, clock: Clock) -> None:
        make_private_file(path)
        self.file = _identity(path)
        self._connection = connect(path)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.text_factory = rows.text  # others may have written what is not UTF-8
        # FULL: what publish returned for also survives a power cut, as the outbox's delete does.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._create(path)
        if file_at(path) != self.file:
            raise FileNotFoundError("it was deleted or replaced while it was opened")
        self._clock = clock
        self._ahead = self._anchor()

    def now(self) -> float:
        """The time of the broker."""
        return self._clock.monotonic() + self._ahead

    def close(self) -> None:
        self._connection.close()

    def declare(self, subscriptions: Sequence[Subscription]) -> bool:
        """Make these subscriptions; whether any was missing."""
        wanted = {(message, s.name) for s in subscriptions for message in s.messages}
        known = set(self._connection.execute("SELECT message, subscription FROM binding"))
        if wanted <= known:
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
            queued, unrouted = [], []
            for envelope in envelopes:
                attributes = orjson.dumps(dict(envelope.attributes))
                for subscription in bindings[envelope.name]:
                    queued.append((subscription, attributes, envelope.data, now))
                if not bindings[envelope.name]:
                    unrouted.append((envelope.name, attributes, envelope.data, now))
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
        """Lease what is due, in order. Without anything due, no write lock is taken."""
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
                "UPDATE queue SET owner = ?, leased_until = ?, deliveries = deliveries + 1"
                " WHERE sequence IN (SELECT sequence FROM queue"
                "  WHERE subscription = ? AND owner IS NULL AND due_at <= ?"
                "  ORDER BY due_at, sequence LIMIT ?)"
                " RETURNING due_at, sequence, attributes, data, attempt, deliveries",
                (owner, now + lease_time, subscription, now, limit),
            ).fetchall()
        return [
            rows.delivery(sequence, attributes, data, attempt, deliveries)
            for _, sequence, attributes, data, attempt, deliveries in sorted(leased)
        ]

    def next_in(self, subscription: str) -> float | None:
        """In how many seconds the next message of the subscription can be leased; None when it
        holds none."""
        row = self._connection.execute(
            "SELECT min(at) FROM ("
            " SELECT min(due_at) AS at FROM queue WHERE subscription = ?1 AND owner IS NULL"
            " UNION ALL"
            " SELECT min(leased_until) FROM queue WHERE subscription = ?1 AND owner IS NOT NULL)",
            (subscription,),
        ).fetchone()
        at = row[0]  # a text, which is never due, where others have written to the file
        return float(at - self.now()) if isinstance(at, float | int) else None

    def settle(
        self,
        owner: str,
        settlements: Sequence[tuple[Delivery, Outcome]],
        letter_ids: Sequence[str],
        died_at: datetime,
    ) -> None:
        """What another worker leased meanwhile is passed over: each statement names the owner."""
        done, delayed, dead = [], [], []
        for (delivery, outcome), letter_id in zip(settlements, letter_ids, strict=True):
            match outcome:
                case Done():
                    done.append((delivery.token, owner))
                case RetryAfter(delay):
                    delayed.append((delay, delivery.token, owner))
                case Dead(reason, error):
                    death = (letter_id, reason, error, died_at.timestamp())
                    dead.append((*death, delivery.token, owner))
                    done.append((delivery.token, owner))
        with self._transaction() as connection:
            now = self.now()
            connection.executemany(
                "INSERT INTO dead_letter SELECT ?, subscription, attributes, data, ?, ?, attempt, ?"
                " FROM queue WHERE sequence = ? AND owner = ?",
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
        """Free what this owner leased; what was not handed out does not count as delivered."""
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
        ready, delayed, in_flight, oldest = self._connection.execute(
            "SELECT count(*) FILTER (WHERE owner IS NULL AND due_at <= ?2),"
            " count(*) FILTER (WHERE owner IS NULL AND due_at > ?2), count(owner),"
            " min(due_at) FILTER (WHERE owner IS NULL AND due_at <= ?2)"
            " FROM queue WHERE subscription = ?1",
            (subscription, now),
        ).fetchone()
        [dead] = self._connection.execute(
            "SELECT count(*) FROM dead_letter WHERE subscription = ?", (subscription,)
        ).fetchone()
        age = None if oldest is None else max(now - oldest, 0.0)
        return SubscriptionStats(ready, delayed, in_flight, dead, age)

    def census(self, subscriptions: Collection[str], messages: Collection[str]) -> Census:
        """In one statement, so that nothing moves meanwhile; it hinders no writer."""
        found = Census()
        counted = self._connection.execute(
            _CENSUS,
            {
                "now": self.now(),
                "subscriptions": orjson.dumps(sorted(subscriptions)).decode(),
                "messages": orjson.dumps(sorted(messages)).decode(),
            },
        )
        for subscription, state, name, dataschema, number, made_at in counted:
            texts = {"type": name, "dataschema": dataschema, "time": made_at}
            attributes = {key: text for key, text in texts.items() if isinstance(text, str)}
            found.add(subscription, Envelope(attributes, b""), state, number)
        return found

    def count_unrouted(self, messages: Collection[str]) -> list[Unrouted]:
        """How many of these messages are unrouted; reads the index only."""
        found = self._connection.execute(
            "SELECT message, count(*) FROM unrouted"
            " WHERE message IN (SELECT value FROM json_each(?)) GROUP BY message",
            (orjson.dumps(sorted(messages)).decode(),),
        )
        return [Unrouted(message, number) for message, number in found]

    def unrouted(self) -> list[Unrouted]:
        """All that is unrouted, with its age and size."""
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
        """Delete at most `limit` of what is to be purged. A row of this table has no subscription:
        `declare` takes it out in the transaction that makes one."""
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

    def dead_letters(self, subscription: str, limit: int) -> list[DeadLetter]:
        """One of each message, the oldest first."""
        return without_copies(self._letters(subscription), limit)

    def _letters(
        self, subscription: str, condition: str = "TRUE", values: Collection[str] = ()
    ) -> Iterator[DeadLetter]:
        """The letters of which this SQL holds; `:values` in it is a JSON array of the values."""
        found = self._connection.execute(
            "SELECT id, attributes, data, reason, error, attempts, died_at FROM dead_letter"  # noqa: S608  # our own text
            f" WHERE subscription = :subscription AND {condition} ORDER BY id",
            # Not orjson: an id that is typed at a terminal may be no valid Unicode.
            {"subscription": subscription, "values": json.dumps(sorted(values))},
        )
        return (rows.dead_letter(subscription, *row) for row in found)

    def replay(self, subscription: str, ids: Sequence[str]) -> list[str]:
        """Give each message back once, and forget all its letters."""
        groups = self._copies(subscription, ids)
        with self._transaction() as connection:
            now = self.now()
            connection.executemany(
                "INSERT INTO queue (subscription, attributes, data, due_at)"
                " SELECT subscription, attributes, data, ? FROM dead_letter"
                " WHERE subscription = ? AND id IN (SELECT value FROM json_each(?))"
                " ORDER BY id LIMIT 1",
                [(now, subscription, json.dumps(group)) for group in groups],
            )
            return self._forget(connection, subscription, groups, ids)

    def discard(self, subscription: str, ids: Sequence[str]) -> list[str]:
        """Forget all letters of these messages."""
        groups = self._copies(subscription, ids)
        with self._transaction() as connection:
            return self._forget(connection, subscription, groups, ids)

    def _copies(self, subscription: str, ids: Sequence[str]) -> Sequence[Sequence[str]]:
        """The ids of all letters of the messages of which these are letters. Reads before the
        transaction for which publishers wait: somebody else may delete such letters meanwhile."""
        named = list(self._letters(subscription, _NAMED, ids))
        messages = {letter.envelope.id for letter in named if letter.envelope.id}
        same = self._letters(subscription, _OF_MESSAGES, messages) if messages else ()
        letters = {letter.id: fingerprint(letter) for letter in (*named, *same)}
        return group_copies(sorted(letters.items()), ids)

    def _forget(
        self,
        connection: sqlite3.Connection,
        subscription: str,
        groups: Sequence[Sequence[str]],
        ids: Sequence[str],
    ) -> list[str]:
        """Delete these letters; returns those of the ids that are among them."""
        deleted = connection.execute(
            "DELETE FROM dead_letter WHERE subscription = ?"
            " AND id IN (SELECT value FROM json_each(?)) RETURNING id",
            (subscription, json.dumps([letter_id for group in groups for letter_id in group])),
        )
        found = {letter_id for (letter_id,) in deleted}
        return [letter_id for letter_id in dict.fromkeys(ids) if letter_id in found]

    def _create(self, path: Path) -> None:
        with self._transaction() as connection:
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version == _VERSION:
                return
            if version != 0:
                raise Drift(
                    f"The broker file {path} has the layout {version}; this EventMesh knows "
                    f"{_VERSION}. Let the workers that made it finish its messages, then remove "
                    f"it, or name another file in EVENTMESH_BROKER_URL."
                )
            for statement in _TABLES.split(";"):  # executescript would commit the transaction
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    def _anchor(self) -> float:
        """How far the broker's time is ahead of the monotonic clock, for whoever opens the file
        from now until the machine starts again."""
        monotonic, wall = self._clock.monotonic(), self._clock.now().timestamp()
        with self._transaction() as connection:
            connection.execute(_CLOCK)
            row = connection.execute("SELECT ahead, latest FROM clock").fetchone()
            [published] = connection.execute(
                # A first attempt is due when it is published, a retry some time later.
                "SELECT max(at) FROM (SELECT max(due_at) AS at FROM queue WHERE attempt = 1"
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
        # IMMEDIATE: the write lock is waited for at the start, never found missing half-way.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
