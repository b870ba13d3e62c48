"""The relay: publishes what transactions have put into the outbox, in order by key.

Each process has one relay for each of its services with an outbox. The outbox has 16 buckets, a
message is in the bucket of its key, and each bucket is relayed by one relay at a time, the one that
holds its lease; when a relay dies, others take its buckets over once its leases have expired.

A round reads up to 500 due rows of the relay's buckets, or takes those that this process has just
committed, publishes them, and deletes those that the broker has confirmed. So a message is
published at least once: it may be published again after a lost connection, and subscribers skip it
as already processed. A message that the broker rejects holds back its key, and is tried again after
a while; after ten rejections it is parked, with its key, until an operator decides (`eventmesh
outbox`).

Five things have their own modules: which buckets (`held_leases`), which rows need not be read any
more (`watermark`, `sweep`), or not at all (`handover`), when the next round begins (`polling`), and
how a batch is published (`dispatch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence import outbox
from eventmesh.persistence.database import Connection, Database
from eventmesh.persistence.outbox import OutboxRow, Rejection, Stored
from eventmesh.persistence.tables import BUCKETS
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.outage_log import OutageLog
from eventmesh.runtime.relaying.dispatch import Dispatched, dispatch
from eventmesh.runtime.relaying.handover import HandedOver, Handover
from eventmesh.runtime.relaying.held_leases import HeldLeases
from eventmesh.runtime.relaying.polling import Polling
from eventmesh.runtime.relaying.purger import Purger
from eventmesh.runtime.relaying.sweep import Sweep
from eventmesh.runtime.relaying.unrouted_bound import UnroutedBound
from eventmesh.runtime.relaying.watermark import Look, Watermark
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.tracing.port import NO_TRACING, Tracing
from eventmesh.transports.base import Subscription, Transport

BATCH = 500
"""How many messages a round relays at the most."""

BATCH_BYTES = 4 * 1024 * 1024
"""How many bytes of data a round relays at the most, if that is more than one message."""

PARK_AFTER = 10
"""After how many rejections by the broker a message is parked, and its key with it."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did. `may_wait` says that no more rows are due, as far as it saw; `lost` why
    the broker did not answer for all it was given."""

    confirmed: int = 0
    may_wait: bool = True
    lost: Unreachable | None = None


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
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """With the settings for `purging`, the relay that holds the first bucket also deletes what
        is too old in the database, and bounds the unrouted messages on the broker: those of the
        `published` names that no subscription takes. `subscriptions` are the service's own."""
        self.vitals = RelayVitals(service)
        self._database = database
        self._transport = transport
        self._tracing = tracing
        self._clock = clock
        self._lease_time = lease_time
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.relay").bind(
            service=service
        )
        self.leases = HeldLeases(database, clock, lease_time)
        self.watermark = Watermark()
        self.handover = Handover()
        self.polling = Polling(database, clock, self._log)
        self.sweep = Sweep(database, clock, self.leases, self.watermark, self._read_all)
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
        self._losses = database.losses

    def _has_first_bucket(self) -> bool:
        """True in one process of the service, which so does what one should do for all."""
        return 0 in self.leases.buckets

    def notice(self, stored: Sequence[Stored]) -> None:
        """Begin a round now: a transaction of this process has committed messages to the outbox,
        `stored` if that is certain."""
        if stored:
            self.handover.put(stored)
            self.polling.wake_for_handover()
        else:
            self.polling.wake()

    async def run(self, stopping: asyncio.Event) -> None:
        """Relay until `stopping`; then what is left, for a bounded time, and release the leases."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                self._wake_at(stopping),
                self.polling.listen(),
                self.sweep.run(),
                self.leases.extend_while_publishing(),
                *(cleaner.run() for cleaner in self._cleaners),
            ]
            beside = [tasks.create_task(helper) for helper in helpers]
            await self._run_rounds(stopping)
            for task in beside:
                task.cancel()
        until = self._clock.monotonic() + self._lease_time  # others may add to it all the while
        try:
            while self._clock.monotonic() < until:
                self.polling.wake()
                last = await self.round()
                if last.lost is not None:
                    raise last.lost
                if not last.confirmed:
                    break
            await self.leases.release()
        except Unreachable as error:
            # Nothing is lost: the rows stay, and the leases expire.
            self._log.warning("outbox relay stopped without last round", error=str(error))

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self.polling.wake()

    async def _run_rounds(self, stopping: asyncio.Event) -> None:
        reconnect, outage = Reconnect(self._clock), OutageLog(self._clock, self._log)

        async def wait(event: str, error: Exception) -> None:
            self.vitals.trouble = str(error)
            outage.failed(event, error)
            self._read_from_the_beginning()  # after a failover, another server may answer
            await reconnect.wait()

        while not stopping.is_set():
            try:
                with leaked_cancellations_raised():
                    last = await self.round()
            except Unreachable as error:
                await wait("outbox relay waiting for database", error)
                continue
            except LeakedCancellation as error:
                await wait("outbox relay interrupted", error)
                continue
            if last.lost is not None:
                await wait("outbox relay waiting for broker", last.lost)
                continue
            if outage.ended():
                self._log.info("outbox relay publishing again")
            self.vitals.trouble = ""
            reconnect.succeeded()
            if last.may_wait:
                await self.polling.wait()

    async def round(self) -> Round:
        """Relay one batch. Raises Unreachable when the database does not answer."""
        self.polling.begin_round()
        if await self.leases.renew():
            self._database.notifier.is_muted = len(self.leases.buckets) == BUCKETS
            self._read_from_the_beginning()
        has_committed = not self.handover.is_empty
        handed_over = self._take()
        if handed_over is not None:
            return await self._relay(handed_over)
        return await self._read_and_relay(has_committed=has_committed)

    def _read_from_the_beginning(self) -> None:
        self.watermark.reset()
        self.handover.reset()

    def _read_all(self) -> None:
        """Begin a round now that reads all there is."""
        self._read_from_the_beginning()
        self.polling.wake()

    def _take(self) -> HandedOver | None:
        """What this process has committed, if it may be published unread."""
        if self.handover.is_empty or self.polling.is_reading_due:
            return None
        handed_over = self.handover.take()
        holds_all = len(self.leases.buckets) == BUCKETS
        return handed_over if holds_all and self._losses == self._database.losses else None

    async def _relay(self, handed_over: HandedOver) -> Round:
        """Relay rows that were handed over."""
        if handed_over.next_due_in is not None:
            self.polling.read_within(handed_over.next_due_in)
        rows = within_bytes(handed_over.rows, BATCH_BYTES)
        dispatched = await self._publish(rows)
        if len(dispatched.confirmed) < len(handed_over.rows):
            self.polling.wake()  # the rest is in the outbox
        return Round(len(dispatched.confirmed), lost=dispatched.lost)

    async def _read_and_relay(self, *, has_committed: bool) -> Round:
        """Relay rows that are read from the outbox; `has_committed` says that this process has
        committed some since the last round."""
        expects_rows = self.polling.begin_reading() or has_committed
        if not self.leases.buckets:
            self.polling.plan_reading()
            return Round()
        rows, look, next_due_in = await self._read(expects_rows=expects_rows)
        dispatched = await self._publish(rows)
        confirmed, may_wait = len(dispatched.confirmed), look.due_at is not None
        if confirmed < len(rows):
            self.watermark.drop_checkpoints()
        else:
            self.watermark.record(look, self._clock.monotonic())
            self.handover.close_through(self.watermark.position.seq)
        if any(row.attempts for row in dispatched.confirmed):
            self._read_from_the_beginning()  # a key is free again, and its rows may be anywhere
            may_wait = False
        if rows:
            self.polling.found_rows(rows_left=confirmed < len(rows))
        self.polling.plan_reading(next_due_in)
        return Round(confirmed, may_wait, dispatched.lost)

    async def _publish(self, rows: Sequence[OutboxRow]) -> Dispatched:
        """Publish these rows, and store the broker's answers."""
        if not rows:
            return Dispatched()
        with self.leases.publishing():
            dispatched = await dispatch(
                self._transport, rows, lambda: self.leases.is_valid, self._tracing
            )
        await self._store_answers(dispatched)
        self.handover.close(dispatched.confirmed)
        if dispatched.rejected:
            self.handover.may_have_rejected = True
        return dispatched

    async def _read(self, *, expects_rows: bool) -> tuple[Sequence[OutboxRow], Look, float | None]:
        """The rows of the next batch; how much of the outbox that has covered; and, where there are
        none, after how many seconds the next delayed one is due. Who does not expect rows looks
        first what is ahead, which is all that an idle relay has to ask."""
        began_at = self._clock.monotonic()
        return await self._database.read_queue(
            lambda connection: self._read_on(connection, began_at, expects_rows=expects_rows)
        )

    def _read_on(
        self, connection: Connection, began_at: float, *, expects_rows: bool
    ) -> tuple[Sequence[OutboxRow], Look, float | None]:
        # Only now that a connection is open: whoever opened it, such as a handler, may have met
        # another server, which may not know what we saw, and give out its numbers again.
        if self._losses != self._database.losses:
            self._losses = self._database.losses
            self._read_from_the_beginning()
        passed, relayed = self.watermark.position, self.handover.closed_through
        now = self._database.time.recent(connection)
        due, newest, may_be_due = [], passed.seq, True
        next_due: datetime | None = None
        if not expects_rows:
            newest, next_due = outbox.ahead(connection, passed, passed.due_at)
            may_be_due = newest > passed.seq or (next_due is not None and next_due <= now)
        if may_be_due:
            due = outbox.due(connection, self.leases.buckets, now, BATCH, passed)
            if not due:
                newest, next_due = outbox.ahead(connection, passed, now)
        if self.handover.may_have_rejected:
            self.handover.may_have_rejected = outbox.has_rejected(connection)
        asks_writers = self.watermark.is_checkpoint_due(began_at)
        writers = outbox.writers(connection) if asks_writers else None
        rows = within_bytes(due, BATCH_BYTES)
        all_seen = len(rows) < BATCH and len(rows) == len(due)
        # Relayed rows are gone, so that only the hand-over knows of their numbers.
        seq = rows[-1].seq if rows else max(relayed, newest)
        next_due_in = None if rows or next_due is None else (next_due - now).total_seconds()
        return rows, Look(began_at, seq, now if all_seen else None, writers), next_due_in

    async def _store_answers(self, dispatched: Dispatched) -> None:
        """Delete what the broker has confirmed; hold, or park, what it has rejected."""
        now, rejected = self._database.time.now(), []
        for row, reason in dispatched.rejected:
            attempt = row.attempts + 1
            self._log.error(
                "message rejected by broker",
                message_id=row.envelope.id,
                name=row.envelope.name,
                correlation_id=row.envelope.correlation_id,
                attempt=attempt,
                parked=attempt >= PARK_AFTER,
                reason=reason,
            )
            rejected.append(
                Rejection(row.seq, reason, now + timedelta(seconds=pause_after_rejections(attempt)))
            )
        all_done = not dispatched.confirmed and not rejected
        if dispatched.confirmed and not rejected:  # as a rule, one statement does it
            all_done = await self._database.write_to_queue(
                lambda connection: outbox.delete_untried(connection, dispatched.confirmed)
            )
        if not all_done:
            async with self._database.queue() as connection:
                await outbox.delete_confirmed(connection, dispatched.confirmed)
                await outbox.mark_rejected(connection, rejected, PARK_AFTER)
        self.vitals.relayed += len(dispatched.confirmed)
        self.vitals.rejected += len(rejected)


def pause_after_rejections(attempts: int) -> float:
    """Seconds for which a message is held, with its key, after this many rejections: doubled each
    time, about 100 s in all before it is parked. A full queue is given time to empty."""
    return min(0.1 * 2.0**attempts, 60.0)


def within_bytes(rows: Sequence[OutboxRow], most: int) -> Sequence[OutboxRow]:
    """The first rows whose data is `most` bytes together, but at least one: the broker must be able
    to store a batch in less time than it is waited for."""
    total = 0
    for number, row in enumerate(rows):
        total += len(row.envelope.data)
        if number and total > most:
            return rows[:number]
    return rows
