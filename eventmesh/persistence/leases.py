"""Which relay may publish which buckets of the outbox: one relay a bucket, by leases that expire.

Each relay renews its leases several times within their lifetime. At each renewal it announces
itself, and keeps or takes its fair share of the buckets; so a new relay gets some, and the buckets
of one that died are taken over when its leases expire. All times are the database's. With 16
buckets and leases of 30 s:

    00 s   A renews: the only relay                  A holds 16
    10 s   B renews: announced, but nothing is free  A holds 16
    12 s   A renews: its share of two is 8           A holds 8, 8 are free
    20 s   B renews                                  A holds 8, B holds 8
    22 s   A renews, and dies at once
    30 s   B renews: A's leases last until 52 s      A holds 8, B holds 8
    55 s   B renews: A has expired                   B holds 16

The lock of all lease rows makes renewals happen one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Insert,
    Select,
    Update,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import BUCKETS, lease, relay

RELAY_GRACE = 5.0
"""Seconds after the end of its lease for which a relay still counts as at work."""


class Lease(NamedTuple):
    """Who may publish a bucket, and until when."""

    bucket: int
    owner: str | None
    expires_at: datetime | None

    def free(self, now: datetime) -> bool:
        """Whether any relay may take it."""
        return self.expires_at is None or self.expires_at <= now


def share(
    leases: Sequence[Lease], owner: str, relays: Sequence[str], now: datetime
) -> frozenset[int]:
    """The buckets that `owner` should hold from now on: what it holds and what is free, but no more
    than its fair share among `relays`, of which it is one. Shares differ by at most one."""
    whole, rest = divmod(len(leases), len(relays))
    fair = whole + (sorted(relays).index(owner) < rest)
    mine = [row.bucket for row in leases if row.owner == owner and not row.free(now)]
    free = [row.bucket for row in leases if row.free(now)]
    return frozenset([*mine, *free][:fair])


def renew(connection: Connection, owner: str, lease_time: float) -> tuple[frozenset[int], float]:
    """Announce this relay for `lease_time` seconds, and keep, take or release leases so that it has
    its share; returns its buckets, and the seconds until the first lease of another relay expires,
    if it is not renewed: infinity where no other relay has one."""
    now, leases = _locked(connection)
    expires_at = now + timedelta(seconds=lease_time)
    relays = _announce(connection, owner, now, expires_at)
    held = share(leases, owner, relays, now)
    _write(connection, leases, held, owner, expires_at)
    return held, next_expiry(leases, owner, now)


def extend(connection: Connection, owner: str, lease_time: float) -> frozenset[int]:
    """Extend the leases that this relay still has to `lease_time` seconds from now, and change
    nobody's share; returns its buckets. For a relay in the middle of a batch, which must not
    release any."""
    now, leases = _locked(connection)
    expires_at = now + timedelta(seconds=lease_time)
    held = frozenset(row.bucket for row in leases if row.owner == owner and not row.free(now))
    if held:
        _announce(connection, owner, now, expires_at)
        _write(connection, leases, held, owner, expires_at)
    return held


def next_expiry(leases: Sequence[Lease], owner: str, now: datetime) -> float:
    """In how many seconds the first lease of another relay expires."""
    others = [
        row.expires_at
        for row in leases
        if row.owner != owner and row.expires_at is not None and not row.free(now)
    ]
    return (min(others) - now).total_seconds() if others else math.inf


def release(connection: Connection, owner: str) -> None:
    """Release all leases of this relay, so that others can take them at once."""
    connection.execute(
        update(lease).where(lease.c.owner == owner).values(owner=None, expires_at=None)
    )
    connection.execute(delete(relay).where(relay.c.owner == owner))


async def count_relays(connection: AsyncConnection, now: datetime) -> int:
    """How many relays are at work, by what they have announced: each worker process of a service
    runs one for its outbox. One that is late by up to RELAY_GRACE is counted, because a busy
    machine is a more common reason for that than a dead process."""
    since = now - timedelta(seconds=RELAY_GRACE)
    live = select(func.count()).select_from(relay).where(relay.c.expires_at > since)
    return (await connection.execute(live)).scalar_one()


def _locked(connection: Connection) -> tuple[datetime, list[Lease]]:
    """The time and all leases, locked until the transaction ends."""
    rows = connection.execute(_locked_leases()).all()
    if len(rows) < BUCKETS:  # the tables were emptied, as between two tests
        missing = dialect_of(connection).insert_absent(lease)
        connection.execute(missing, [{"bucket": bucket} for bucket in range(BUCKETS)])
        rows = connection.execute(_locked_leases()).all()
    return rows[0].now, [Lease(row.bucket, row.owner, row.expires_at) for row in rows]


def _announce(
    connection: Connection, owner: str, now: datetime, expires_at: datetime
) -> Sequence[str]:
    """Enter or extend this relay, delete those that have expired; returns all that there are."""
    known = {row.owner: row.expires_at for row in connection.execute(_relays())}
    over = [other for other, until in known.items() if until <= now and other != owner]
    if over:
        connection.execute(delete(relay).where(relay.c.owner.in_(over)))
    if owner in known:
        connection.execute(_extend(), {"holder": owner, "until": expires_at})
    else:
        connection.execute(_enter(), {"owner": owner, "expires_at": expires_at})
    return [*(other for other in known if other not in over and other != owner), owner]


def _write(
    connection: Connection,
    leases: Sequence[Lease],
    held: frozenset[int],
    owner: str,
    expires_at: datetime,
) -> None:
    surplus = [row.bucket for row in leases if row.owner == owner and row.bucket not in held]
    if surplus:
        connection.execute(
            update(lease).where(lease.c.bucket.in_(surplus)).values(owner=None, expires_at=None)
        )
    until = {"holder": owner, "until": expires_at}
    if len(held) == len(leases):  # as a relay that is alone, which need not name them
        connection.execute(_hold_all(), until)
    elif held:
        connection.execute(_hold(), until | {"buckets": sorted(held)})


# Every relay executes these often, and building a statement takes longer than executing it.


@cache
def _locked_leases() -> Select[Any]:
    columns = (database_now().label("now"), lease.c.bucket, lease.c.owner, lease.c.expires_at)
    return select(*columns).order_by(lease.c.bucket).with_for_update()


@cache
def _relays() -> Select[Any]:
    return select(relay.c.owner, relay.c.expires_at)


@cache
def _enter() -> Insert:
    return insert(relay)


@cache
def _extend() -> Update:
    return (
        update(relay)
        .where(relay.c.owner == bindparam("holder"))
        .values(expires_at=bindparam("until"))
    )


@cache
def _hold() -> Update:
    return _hold_all().where(lease.c.bucket.in_(bindparam("buckets", expanding=True)))


@cache
def _hold_all() -> Update:
    return update(lease).values(owner=bindparam("holder"), expires_at=bindparam("until"))
