"""What a relay has a lease of, and for how long it may act on that."""

from __future__ import annotations

from eventmesh.clock import Clock
from eventmesh.persistence import leases
from eventmesh.persistence.database import Database

SAFE = 0.8
"""The part of its lease time for which a relay publishes: another's clock may run faster."""

SOONEST = 0.01
"""Seconds between two renewals, at the least."""


class Tenure:
    """One relay's leases, renewed when it asks for them, and extended while it cannot."""

    def __init__(self, database: Database, clock: Clock, lease_time: float) -> None:
        self.owner = clock.new_id()
        self.buckets: frozenset[int] = frozenset()
        """What it has, as far as it knows."""
        self._database = database
        self._clock = clock
        self._lease_time = lease_time
        self._renew_at = 0.0
        self._valid_until = 0.0

    @property
    def valid(self) -> bool:
        """Whether surely no other relay has these buckets by now."""
        return self._clock.monotonic() < self._valid_until

    @property
    def overdue(self) -> bool:
        """Whether the leases should be renewed, or extended."""
        return self._clock.monotonic() >= self._renew_at

    async def renew(self) -> bool:
        """Take this relay's share, and give up what is more, where that is due; returns whether
        others may have had any of it meanwhile. Unreachable."""
        now = self._clock.monotonic()
        if now < self._renew_at:
            return False
        async with self._database.connection() as connection:
            buckets = await leases.renew(connection, self.owner, self._lease_time)
            ends_in = await leases.next_expiry(connection, self.owner)
        changed = buckets != self.buckets or now >= self._valid_until
        self.buckets = buckets
        # Counted from before the renewal.
        self._valid_until = now + self._lease_time * SAFE
        # Or when another's lease ends, as it does when that one is dead: to be its heir at once.
        another_ends = self._clock.monotonic() + max(ends_in, SOONEST)
        self._renew_at = min(now + self._lease_time / 2, another_ends)
        return changed

    async def extend(self) -> None:
        """Hold what this relay has, and no more and no less, for its lease time; Unreachable."""
        now = self._clock.monotonic()
        async with self._database.connection() as connection:
            held = await leases.extend(connection, self.owner, self._lease_time)
        if held == self.buckets:
            self._valid_until = max(self._valid_until, now + self._lease_time * SAFE)

    async def release(self) -> None:
        """Give up all at once, for others to take; Unreachable."""
        async with self._database.connection() as connection:
            await leases.release(connection, self.owner)
