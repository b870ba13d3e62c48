"""The relay: brings what transactions have put into the outbox to the broker, in order by key.

One a worker process and service. A bucket of the outbox is relayed by one relay at a time; a relay
that dies is replaced when its leases end. A message may be published twice, which the inbox of its
subscribers passes over, but none is deleted before the broker has confirmed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence import outbox
from eventmesh.persistence.database import Database
from eventmesh.persistence.notifications import listen
from eventmesh.persistence.outbox import START, OutboxRow, Rejection
from eventmesh.persistence.tables import BUCKETS
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.dispatch import dispatch
from eventmesh.runtime.relaying.held_leases import Tenure
from eventmesh.runtime.relaying.purger import Purger
from eventmesh.runtime.relaying.unrouted_bound import UnroutedBound
from eventmesh.runtime.relaying.watermark import Horizon
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.transports.base import Subscription, Transport

BATCH = 500
"""How many messages a round relays at the most."""

BATCH_BYTES = 4 * 1024 * 1024
"""How many bytes of data a round relays at the most, if that is more than one message."""

PARK_AFTER = 10
"""After how many refusals by the broker a message is parked, and its key with it."""

SWEEP_EVERY = 1.0
"""Seconds between two looks at what the rounds leave out, at the least."""

_SWEEP_SHARE = 20  # they take one part in this many of the time, at the most

_SHORTEST_POLL, _LONGEST_POLL = 0.01, 0.5  # seconds, the second where others tell of their commits


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look found, when it began, and how far it has seen: up to this number only, unless it
    saw all that there is, due until then. `writers` were writing after it, if that was asked."""

    rows: Sequence[OutboxRow]
    began_at: float
    seq: int
    due_at: datetime | None
    writers: Collection[str] | None


class Relay:
    """Relays one service's outbox until told to stop."""

    def __init__(
        self,
        service: str,
        database: Database,
        transport: Transport,
        clock: Clock,
        lease_time: float,
        *,
        purging: Settings | None = None,
        published: Collection[str] = (),
        subscriptions: Sequence[Subscription] = (),
    ) -> None:
        """With the settings for `purging`, it also clears away what is too old, and bounds what no
        subscription takes of the `published` messages, where it has the first bucket;
        `subscriptions` are the service's own."""
        self.vitals = RelayVitals(service)
        self._database = database
        self._transport = transport
        self._clock = clock
        self._lease_time = lease_time
        self._cleaners: list[Purger | UnroutedBound] = []
        if purging is not None:
            self._cleaners += [
                Purger(database, clock, purging, self._has_first_bucket),
                UnroutedBound(
                    transport,
                    clock,
                    purging.unrouted_max,
                    published,
                    subscriptions,
                    self.vitals,
                    self._has_first_bucket,
                ),
            ]
        self.tenure = Tenure(database, clock, lease_time)
        self._horizon = Horizon()
        self._losses = database.losses
        self._publishing = False
        self._poll = _SHORTEST_POLL
        self._told = False  # of what other processes commit
        self._saw_all = False  # in the last round
        self._wanted = asyncio.Event()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.relay").bind(
            service=service
        )

    def wake(self) -> None:
        """Look into the outbox now: somebody has committed to it."""
        self._wanted.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop`, then what is left, and give up the leases."""
        async with asyncio.TaskGroup() as tasks:
            beside = [
                tasks.create_task(each) for each in (self._listen(), self._sweep(), self._hold())
            ]
            beside += [tasks.create_task(cleaner.run()) for cleaner in self._cleaners]
            await self._work(stop)
            for task in beside:
                task.cancel()
        await self._finish()

    def _has_first_bucket(self) -> bool:
        """Which one process of the service has: so it does what one is to do for all."""
        return 0 in self.tenure.buckets

    async def _work(self, stop: asyncio.Event) -> None:
        reconnect = Reconnect(self._clock)
        while not stop.is_set():
            try:
                with leaked_cancellations_raised():
                    await self.round()
                    if self._saw_all:
                        await self._idle(stop)
                reconnect.succeeded()
                self.vitals.trouble = ""
            except (Unreachable, LeakedCancellation) as error:
                self.vitals.trouble = str(error)
                self._log.warning("relay waits", error=str(error))
                self._horizon.forget()  # another server may answer next, as after a loss
                await reconnect.wait()

    async def _listen(self) -> None:
        """Be woken by other processes, where the database can pass that on."""
        reconnect = Reconnect(self._clock)
        while self._database.dialect.can_notify:
            try:
                with leaked_cancellations_raised():
                    await listen(self._database, self._hear)
            except (Unreachable, LeakedCancellation):  # which the relay itself tells of, too
                self._told = False
                await reconnect.wait()
            else:
                self._log.warning(f"LISTEN/NOTIFY unavailable; polling every {_LONGEST_POLL:g} s")
                return

    def _hear(self) -> None:
        self._told = True
        self.wake()

    async def _finish(self) -> None:
        """Relay what is left, for a bounded time: others may be adding all the while."""
        until = self._clock.monotonic() + self._lease_time
        try:
            while self._clock.monotonic() < until and await self.round():
                pass
            await self.tenure.release()
        except Unreachable as error:
            # Nothing is lost: the rows stay, and the leases end by themselves.
            self._log.warning("relay stops without its last round", error=str(error))

    async def round(self) -> int:
        """Relay one batch; returns how many messages the broker has confirmed."""
        self._wanted.clear()
        self._saw_all = True
        await self._renew()
        if not self.tenure.buckets:
            return 0
        look = await self._look()
        if look.rows:
            self._saw_all = look.due_at is not None
            self._poll = _LONGEST_POLL if self._told else _SHORTEST_POLL
        confirmed = await self._bring(look.rows) if look.rows else frozenset[int]()
        if len(confirmed) == len(look.rows):
            self._see(look)
        else:
            self._horizon.stay()
            self._poll = _SHORTEST_POLL  # for what is held now
        if any(row.attempts for row in look.rows if row.seq in confirmed):
            self._horizon.forget()  # a key was set free, and what follows may be anywhere
            self._saw_all = False
        return len(confirmed)

    async def _renew(self) -> None:
        if await self.tenure.renew():
            self._database.notifier.is_muted = len(self.tenure.buckets) == BUCKETS
            self._horizon.forget()

    async def _look(self) -> _Look:
        began_at = self._clock.monotonic()
        writers: Collection[str] | None = None
        async with self._database.queue(reads=True) as connection:
            self._forget_another_server()
            beyond = self._horizon.beyond
            now = await self._database.time.recent(connection)
            waiting = await outbox.due(connection, self.tenure.buckets, now, BATCH, beyond)
            newest = 0 if waiting else await outbox.newest(connection, beyond)
            if self._horizon.wants_mark(began_at):
                writers = await outbox.writers(connection)
        rows = within_bytes(waiting, BATCH_BYTES)
        all_due = len(rows) < BATCH and len(rows) == len(waiting)
        seq = rows[-1].seq if rows else newest
        return _Look(rows, began_at, seq, now if all_due else None, writers)

    def _forget_another_server(self) -> None:
        """One that took over may not know what was seen, and give out its numbers again. Who finds
        the connections lost may be a handler, before any look fails."""
        if self._losses != self._database.losses:
            self._losses = self._database.losses
            self._horizon.forget()

    def _see(self, look: _Look) -> None:
        """All that a look has found is relayed."""
        self._horizon.seen(look.began_at, look.seq, look.due_at)
        if look.writers is not None:
            self._horizon.mark(self._clock.monotonic(), look.seq, look.due_at, look.writers)

    async def _bring(self, rows: Sequence[OutboxRow]) -> frozenset[int]:
        """Publish these rows and forget what the broker has; returns the numbers of those."""
        self._publishing = True
        try:
            sent = await dispatch(self._transport, rows, lambda: self.tenure.valid)
        finally:
            self._publishing = False
        refused = [self._refusal(row, reason) for row, reason in sent.refused]
        async with self._database.queue() as connection:
            await outbox.delete_confirmed(connection, sent.confirmed)
            await outbox.mark_rejected(connection, refused, PARK_AFTER)
        self.vitals.relayed += len(sent.confirmed)
        self.vitals.refused += len(sent.refused)
        if sent.lost is not None:
            self._horizon.stay()
            raise sent.lost
        return frozenset(row.seq for row in sent.confirmed)

    async def _sweep(self) -> None:
        """Look, now and then, whether there is anything where the rounds do not look any more: what
        was committed very late, or restored. It may take long, so that they do not wait for it."""
        pause = SWEEP_EVERY
        while True:
            await self._clock.sleep(pause)
            began = self._clock.monotonic()
            with (
                suppress(Unreachable, LeakedCancellation),
                leaked_cancellations_raised(),
            ):  # the rounds will tell of it
                await self._sweep_once()
            pause = max(SWEEP_EVERY, _SWEEP_SHARE * (self._clock.monotonic() - began))

    async def _sweep_once(self) -> None:
        seen = self._horizon.beyond
        if seen == START:
            return
        async with self._database.queue(reads=True) as connection:
            now = await self._database.time.recent(connection)
            if await outbox.due(connection, self.tenure.buckets, now, 1, seen, up_to=True):
                self._horizon.forget()
                self.wake()

    def _refusal(self, row: OutboxRow, reason: str) -> Rejection:
        attempt = row.attempts + 1
        self._log.error(
            "refused by the broker",
            message_id=row.envelope.id,
            name=row.envelope.name,
            correlation_id=row.envelope.correlation_id,
            attempt=attempt,
            parked=attempt >= PARK_AFTER,
            reason=reason,
        )
        again_at = self._database.time.now() + timedelta(seconds=hold_time(attempt))
        return Rejection(row.seq, reason, again_at)

    async def _hold(self) -> None:
        """Extend the leases while a batch is on its way to a slow broker: else another relay would
        publish it, too."""
        while True:
            await self._clock.sleep(self._lease_time / 8)
            if self._publishing and self.tenure.overdue:
                with (
                    suppress(Unreachable, LeakedCancellation),
                    leaked_cancellations_raised(),
                ):  # the rounds will tell of it
                    await self.tenure.extend()

    async def _idle(self, stop: asyncio.Event) -> None:
        """Wait for a commit of this process, or for the next look at what others committed."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._wanted, stop)]
        try:
            await asyncio.wait(waits, timeout=self._poll, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        self._poll = min(self._poll * 2, _LONGEST_POLL)


def hold_time(attempts: int) -> float:
    """Seconds for which a message is held, with its key, after this many refusals: doubled each
    time, about 100 s in all before it is parked. A full queue is given time to empty."""
    return min(0.1 * 2.0**attempts, 60.0)


def within_bytes(rows: Sequence[OutboxRow], most: int) -> Sequence[OutboxRow]:
    """The first rows whose data is `most` bytes together, but at least one: a batch must be sent
    in less time than the broker is waited for."""
    total = 0
    for number, row in enumerate(rows):
        total += len(row.envelope.data)
        if number and total > most:
            return rows[:number]
    return rows
