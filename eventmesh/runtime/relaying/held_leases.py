"""The leases that one relay holds, and until when it may act on them.

The outbox has 16 buckets, and a relay may publish only rows of buckets that it has a lease of, or
two relays would publish the same messages, and out of order. A lease ends by itself, so that others
take over the buckets of a relay that died. With a lease time of 3 s:

    0.0 s   renewed, in the database until 3.0 s by the database's clock
    0.4 s   then every 3/8 s: extended, if a batch is at the broker and a renewal is overdue
    1.5 s   renewed again before the next round, which may change the relay's share
    2.4 s   not renewed: this relay stops publishing, as its clock may run slower than others'
    3.0 s   not renewed: others take its buckets over
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence import leases
from eventmesh.persistence.database import Database
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised

SAFE_SHARE = 0.8
"""The part of its lease time for which a relay publishes: another's clock may run faster."""

SHORTEST_RENEWAL = 0.01
"""Seconds between two renewals, at the least."""


class HeldLeases:
    """One relay's leases: renewed between batches, and extended while a batch is published."""

    def __init__(self, database: Database, clock: Clock, lease_time: float) -> None:
        self.owner = clock.new_id()
        self.buckets: frozenset[int] = frozenset()
        """The buckets that it holds, as far as it knows."""
        self._database = database
        self._clock = clock
        self._lease_time = lease_time
        self._renew_at = 0.0
        self._valid_until = 0.0
        self._publishing = False

    @property
    def is_valid(self) -> bool:
        """Whether surely no other relay has these buckets by now."""
        return self._clock.monotonic() < self._valid_until

    async def renew(self) -> bool:
        """Take this relay's share, and give up what is more, where that is due; returns whether
        other relays may have published from any of it meanwhile. Unreachable."""
        now = self._clock.monotonic()
        if now < self._renew_at:
            return False
        buckets, ends_in = await self._database.transact(
            lambda connection: leases.renew(connection, self.owner, self._lease_time)
        )
        changed = buckets != self.buckets or now >= self._valid_until
        self.buckets = buckets
        # Counted from before the renewal.
        self._valid_until = now + self._lease_time * SAFE_SHARE
        # Or when another's lease ends: if that relay is dead, its buckets are taken over at once.
        another_ends = self._clock.monotonic() + max(ends_in, SHORTEST_RENEWAL)
        self._renew_at = min(now + self._lease_time / 2, another_ends)
        return changed

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """While a batch is published, `extend_while_publishing` keeps the leases."""
        self._publishing = True
        try:
            yield
        finally:
            self._publishing = False

    async def extend_while_publishing(self) -> None:
        """Extend the leases while a slow broker has a batch, until cancelled: else they would
        expire, and another relay would publish the same rows."""
        while True:
            await self._clock.sleep(self._lease_time / 8)
            if self._publishing and self._clock.monotonic() >= self._renew_at:
                # If it fails, so does the next round, which logs it.
                with suppress(Unreachable, LeakedCancellation), leaked_cancellations_raised():
                    await self._extend()

    async def _extend(self) -> None:
        """Hold what this relay has, no more and no less, for its lease time; Unreachable."""
        now = self._clock.monotonic()
        held = await self._database.transact(
            lambda connection: leases.extend(connection, self.owner, self._lease_time)
        )
        if held == self.buckets:
            self._valid_until = max(self._valid_until, now + self._lease_time * SAFE_SHARE)

    async def release(self) -> None:
        """Give up all leases at once, for others to take; Unreachable."""
        await self._database.transact(lambda connection: leases.release(connection, self.owner))
