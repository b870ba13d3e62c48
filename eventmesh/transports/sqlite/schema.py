"""The tables in a broker file.

`queue` has one row for each message and subscription: free, or leased by a consumer until
`leased_until`. `unrouted` keeps messages that no subscription wants yet, `dead_letter` the dead
letters. `clock` has one row, which makes the broker's time out of the monotonic clock; see `store`.

`ordered` has the subscriptions with an order. Their rows have an `ordering_key`, and within a key,
none is due before an earlier one: to hold a key back is to make all of its rows due later.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from eventmesh.errors import Drift

_VERSION = 2

NEVER = 1e15
"""When a row is due that waits for the end of a dead letter which holds its key."""

TABLES = """
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
_SINCE_VERSION_2 = """
CREATE TABLE ordered (
    subscription TEXT PRIMARY KEY, after_dead TEXT NOT NULL
) WITHOUT ROWID;
ALTER TABLE queue ADD COLUMN ordering_key TEXT;
CREATE INDEX queue_key ON queue (subscription, ordering_key, due_at)
    WHERE ordering_key IS NOT NULL;
CREATE INDEX queue_busy_key ON queue (subscription, ordering_key)
    WHERE ordering_key IS NOT NULL AND owner IS NOT NULL;
ALTER TABLE dead_letter ADD COLUMN sequence INTEGER;
ALTER TABLE dead_letter ADD COLUMN ordering_key TEXT;
ALTER TABLE dead_letter ADD COLUMN holds_key INTEGER NOT NULL DEFAULT FALSE;
CREATE INDEX dead_letter_key ON dead_letter (subscription, ordering_key) WHERE holds_key;
"""
CLOCK_TABLE = """
CREATE TABLE IF NOT EXISTS clock (
    id INTEGER PRIMARY KEY CHECK (id = 1), ahead REAL NOT NULL, latest REAL NOT NULL
)
"""


def create_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Create the tables in an empty file, or what an older one lacks; Drift if the file has those
    of a later version. To be called in a transaction."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    if not 0 <= version < _VERSION:
        raise Drift(
            f"The broker file {path} has version {version} of the tables, and this release of "
            f"EventMesh uses version {_VERSION}. Let the workers of the other release finish its "
            f"messages and then remove it, or name another file in EVENTMESH_BROKER_URL."
        )
    missing = TABLES + _SINCE_VERSION_2 if version == 0 else _SINCE_VERSION_2
    for statement in missing.split(";"):  # executescript would commit the transaction
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_VERSION}")
