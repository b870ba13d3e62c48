"""Order within a key: the statements on the rows of subscriptions with an order.

Within a key, no row is due before an earlier one. To hold a key back is to make all of its rows due
later; to hold it for a dead letter, to make them due never.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from eventmesh.transports.base import AfterDead, Subscription
from eventmesh.transports.sqlite.schema import NEVER

FREE = """
owner IS NULL AND (ordering_key IS NULL OR NOT EXISTS (
    SELECT 1 FROM queue AS busy WHERE busy.subscription = free.subscription
    AND busy.ordering_key = free.ordering_key AND busy.owner IS NOT NULL))
"""
"""The condition for the row `free` of `queue` to be free."""

IN_ITS_PLACE = """
coalesce(
    (SELECT max(due_at) FROM queue AS earlier WHERE earlier.subscription = dead_letter.subscription
        AND earlier.ordering_key = dead_letter.ordering_key
        AND earlier.sequence < dead_letter.sequence AND due_at < ?5),
    (SELECT min(?1, min(due_at)) FROM queue AS waiting
        WHERE waiting.subscription = dead_letter.subscription
        AND waiting.ordering_key = dead_letter.ordering_key),
    ?1)
"""
"""When a replayed `dead_letter` is due, in its old place: with what is earlier in its key, or else
now, which is ?1, and no later than any of its key; ?5 is NEVER."""

_KEY = """
CASE WHEN json_valid(CAST(attributes AS TEXT)) THEN
    coalesce(json_extract(CAST(attributes AS TEXT), '$.partitionkey'),
        json_extract(CAST(attributes AS TEXT), '$.subject'), '') ELSE '' END
"""
_ENQUEUE = """
INSERT INTO queue (subscription, attributes, data, ordering_key, due_at)
SELECT ?1, ?2, ?3, ?4, max(?5,
    coalesce((SELECT max(due_at) FROM queue WHERE subscription = ?1 AND ordering_key = ?4), 0),
    CASE WHEN EXISTS (SELECT 1 FROM dead_letter
        WHERE subscription = ?1 AND ordering_key = ?4 AND holds_key) THEN ?6 ELSE 0 END)
"""


_RELEASED = """
max(?1, coalesce((SELECT max(due_at) FROM queue AS earlier
    WHERE earlier.subscription = ?2 AND earlier.ordering_key = queue.ordering_key
    AND earlier.due_at < ?3), 0))
"""
"""When a row of `queue` is due that a dead letter held: now, or with what waits for another reason,
such as a retry, which is earlier in its key. ?1 is now, ?2 the subscription, ?3 NEVER."""


def known(connection: sqlite3.Connection) -> dict[str, AfterDead]:
    """The subscriptions with an order, and what a dead letter does to its key in each."""
    return dict(connection.execute("SELECT subscription, after_dead FROM ordered"))


def changed(
    connection: sqlite3.Connection, subscriptions: Sequence[Subscription]
) -> list[Subscription]:
    """Those of these subscriptions that are declared with another order than before."""
    ordered = known(connection)
    return [each for each in subscriptions if ordered.get(each.name) != _after_dead(each)]


def declare(
    connection: sqlite3.Connection, subscriptions: Iterable[Subscription], now: float
) -> None:
    """Give the rows of each subscription their keys, or take them away, as it has an order; release
    the keys that dead letters held, if they hold none any more."""
    ordered = known(connection)
    for each in subscriptions:
        after_dead = _after_dead(each)
        if ordered.get(each.name) == "hold" and after_dead != "hold":
            _release_all(connection, each.name, now)
        if after_dead is not None:
            connection.execute(
                "INSERT OR REPLACE INTO ordered VALUES (?, ?)", (each.name, after_dead)
            )
            _order(connection, each.name)
        elif each.name in ordered:
            connection.execute("DELETE FROM ordered WHERE subscription = ?", (each.name,))
            connection.execute(
                "UPDATE queue SET ordering_key = NULL"
                " WHERE subscription = ? AND ordering_key IS NOT NULL",
                (each.name,),
            )


def _release_all(connection: sqlite3.Connection, subscription: str, now: float) -> None:
    connection.execute(
        "UPDATE dead_letter SET holds_key = FALSE WHERE subscription = ? AND holds_key",
        (subscription,),
    )
    connection.execute(
        f"UPDATE queue SET due_at = {_RELEASED} WHERE subscription = ?2 AND due_at >= ?3",  # noqa: S608  # our own text
        (now, subscription, NEVER),
    )


def _order(connection: sqlite3.Connection, subscription: str) -> None:
    connection.execute(
        f"UPDATE queue SET ordering_key = {_KEY}"  # noqa: S608  # our own text
        " WHERE subscription = ? AND ordering_key IS NULL",
        (subscription,),
    )
    connection.execute(
        "UPDATE queue SET due_at = latest.due_at FROM ("
        " SELECT sequence, max(due_at) OVER (PARTITION BY ordering_key ORDER BY sequence) AS due_at"
        " FROM queue WHERE subscription = ?1 AND ordering_key IS NOT NULL) AS latest"
        " WHERE queue.sequence = latest.sequence AND queue.due_at < latest.due_at",
        (subscription,),
    )


def enqueue(
    connection: sqlite3.Connection, messages: Iterable[tuple[str, bytes, bytes, str, float]]
) -> None:
    """Queue messages, given as subscription, attributes, data, key and time, each behind all others
    of its key."""
    connection.executemany(_ENQUEUE, [(*message, NEVER) for message in messages])


def hold_back(connection: sqlite3.Connection, owner: str, sequence: int, until: float) -> None:
    """Take back what was leased after this row of its key, and make all after it due at this time.
    Nothing happens if the row is not leased by this owner any more."""
    held = connection.execute(
        "SELECT subscription, ordering_key FROM queue WHERE sequence = ? AND owner = ?",
        (sequence, owner),
    ).fetchone()
    if held is None:
        return
    connection.execute(
        "UPDATE queue SET deliveries = deliveries - 1, owner = NULL, leased_until = NULL"
        " WHERE subscription = ? AND ordering_key = ? AND sequence > ? AND owner = ?",
        (*held, sequence, owner),
    )
    connection.execute(
        "UPDATE queue SET due_at = max(due_at, ?)"
        " WHERE subscription = ? AND ordering_key = ? AND sequence > ?",
        (until, *held, sequence),
    )


def release(
    connection: sqlite3.Connection, subscription: str, keys: Iterable[str], now: float
) -> None:
    """Make what waits in these keys due, unless another dead letter holds them."""
    connection.executemany(
        f"UPDATE queue SET due_at = {_RELEASED} WHERE subscription = ?2 AND ordering_key = ?4"  # noqa: S608  # our own text
        " AND due_at >= ?3 AND NOT EXISTS (SELECT 1 FROM dead_letter"
        " WHERE subscription = ?2 AND ordering_key = ?4 AND holds_key)",
        [(now, subscription, NEVER, key) for key in keys],
    )


def _after_dead(subscription: Subscription) -> AfterDead | None:
    return None if subscription.order is None else subscription.order.after_dead
