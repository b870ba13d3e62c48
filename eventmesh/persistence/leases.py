"""Which relay may publish which buckets of the outbox: one relay a bucket, by leases that end.

Relays announce themselves, and each takes its fair share, so that a new one finds work and the
buckets of a dead one are taken over when its lease is over. All times are the database's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import Select, Update, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.dialects.sql import database_now
from eventmesh.persistence.tables import BUCKETS, lease, relay


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may publish a bucket, and until when."""

    bucket: int
    owner: str | None
    expires_at: datetime | None

    def free(self, now: datetime) -> bool:
        """Whether anybody may take it."""
        return self.expires_at is None or self.expires_at <= now


def share(
    leases: Sequence[Lease], owner: str, relays: Sequence[str], now: datetime
) -> frozenset[int]:
    """The buckets that `owner` should hold from now on: what it has and what is free, but no more
    than its fair part among `relays`, of which it is one. Parts differ by one at the most."""
    whole, rest = divmod(len(leases), len(relays))
    fair = whole + (sorted(relays).index(owner) < rest)
    mine = [row.bucket for row in leases if row.owner == owner and not row.free(now)]
    free = [row.bucket for row in leases if row.free(now)]
    return frozenset([*mine, *free][:fair])


async def renew(connection: AsyncConnection, owner: str, lease_time: float) -> frozenset[int]:
    """Announce this relay for `lease_time` seconds and settle its leases; returns its buckets."""
    now, leases = await _locked(connection)
    expires_at = now + timedelta(seconds=lease_time)
    relays = await _announce(connection, owner, now, expires_at)
    held = share(leases, owner, relays, now)
    await _write(connection, leases, held, owner, expires_at)
    return held


async def extend(connection: AsyncConnection, owner: str, lease_time: float) -> frozenset[int]:
    """Hold what this relay still has for `lease_time` seconds more, and let nobody's share change;
    returns its buckets. For a relay in the middle of a batch, which may give up nothing."""
    now, leases = await _locked(connection)
    expires_at = now + timedelta(seconds=lease_time)
    held = frozenset(row.bucket for row in leases if row.owner == owner and not row.free(now))
    if held:
        await _announce(connection, owner, now, expires_at)
        await _write(connection, leases, held, owner, expires_at)
    return held


async def next_end(connection: AsyncConnection, owner: str) -> float:
    """Seconds until the first lease of another relay ends, should it not be renewed; infinity where
    no other has one."""
    row = (await connection.execute(_next_end(), {"holder": owner})).one()
    return math.inf if row.ends is None else (row.ends - row.now).total_seconds()


async def release(connection: AsyncConnection, owner: str) -> None:
    """Give up all leases of this relay at once, for others to take."""
    await connection.execute(
        update(lease).where(lease.c.owner == owner).values(owner=None, expires_at=None)
    )
    await connection.execute(delete(relay).where(relay.c.owner == owner))


async def _locked(connection: AsyncConnection) -> tuple[datetime, list[Lease]]:
    """The time, and all leases, locked: relays take turns."""
    rows = (await connection.execute(_locked_leases())).all()
    if len(rows) < BUCKETS:  # somebody has emptied the tables, as between two tests
        missing = dialect_of(connection).insert_absent(lease)
        await connection.execute(missing, [{"bucket": bucket} for bucket in range(BUCKETS)])
        rows = (await connection.execute(_locked_leases())).all()
    return rows[0].now, [Lease(row.bucket, row.owner, row.expires_at) for row in rows]


async def _announce(
    connection: AsyncConnection, owner: str, now: datetime, expires_at: datetime
) -> Sequence[str]:
    """Enter this relay, forget those whose time is over; returns all there are."""
    known = {row.owner: row.expires_at for row in await connection.execute(_relays())}
    over = [other for other, until in known.items() if until <= now and other != owner]
    if over:
        await connection.execute(delete(relay).where(relay.c.owner.in_(over)))
    if owner in known:
        await connection.execute(_extend(), {"holder": owner, "until": expires_at})
    else:
        await connection.execute(insert(relay).values(owner=owner, expires_at=expires_at))
    return [*(other for other in known if other not in over and other != owner), owner]


async def _write(
    connection: AsyncConnection,
    leases: Sequence[Lease],
    held: frozenset[int],
    owner: str,
    expires_at: datetime,
) -> None:
    surplus = [row.bucket for row in leases if row.owner == owner and row.bucket not in held]
    if surplus:
        await connection.execute(
            update(lease).where(lease.c.bucket.in_(surplus)).values(owner=None, expires_at=None)
        )
    if held:
        await connection.execute(
            _hold(), {"holder": owner, "until": expires_at, "buckets": sorted(held)}
        )


# Statements that every relay runs again and again: building one takes longer than running it.


@cache
def _locked_leases() -> Select[Any]:
    columns = (database_now().label("now"), lease.c.bucket, lease.c.owner, lease.c.expires_at)
    return select(*columns).order_by(lease.c.bucket).with_for_update()


@cache
def _next_end() -> Select[Any]:
    now, ends = database_now(), func.min(lease.c.expires_at)
    columns: Sequence[Any] = (now.label("now"), ends.label("ends"))
    return select(*columns).where(lease.c.owner != bindparam("holder"), lease.c.expires_at > now)


@cache
def _relays() -> Select[Any]:
    return select(relay.c.owner, relay.c.expires_at)


@cache
def _extend() -> Update:
    return (
        update(relay)
        .where(relay.c.owner == bindparam("holder"))
        .values(expires_at=bindparam("until"))
    )


@cache
def _hold() -> Update:
    return (
        update(lease)
        .where(lease.c.bucket.in_(bindparam("buckets", expanding=True)))
        .values(owner=bindparam("holder"), expires_at=bindparam("until"))
    )
