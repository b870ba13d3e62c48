"""The relay: brings what transactions have put into the outbox to the broker, in order by key.

One a worker process and service. A bucket of the outbox is relayed by one relay at a time; a relay
that dies is replaced when its leases end. A message may be published twice, which the inbox of its
subscribers passes over, but none is deleted before the broker has confirmed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, PublishInterrupted, Unreachable
from eventmesh.persistence import leases, notify, outbox
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import NOTHING, OutboxRow, Refusal, Seen
from eventmesh.persistence.tables import BUCKETS
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import Leaked, leaks_caught
from eventmesh.runtime.horizon import Horizon
from eventmesh.runtime.purger import Purger
from eventmesh.runtime.settings import Settings
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.transports.base import Transport

BATCH = 500
"""How many messages a round relays at the most."""

BATCH_BYTES = 4 * 1024 * 1024
"""How many bytes of data a round relays at the most, if that is more than one message."""

PARK_AFTER = 10
"""After how many refusals by the broker a message is parked, and its key with it."""

SWEEP_EVERY = 1.0
"""Seconds between two looks at what the rounds leave out, at the least."""

_SWEEP_SHARE = 20  # they take one part in this many of the time, at the most

_SHORTEST_POLL, _LONGEST_POLL = 0.01, 0.5  # seconds


@dataclass(slots=True)
class _Sent:
    """What became of a round's messages. After a loss, the others may be on the broker or not."""

    confirmed: list[int] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
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
    ) -> None:
        """With the settings for `purging`, it also clears away what is too old, where it has the
        first bucket."""
        self.owner = clock.new_id()
        self.vitals = RelayVitals(service)
        self._database = database
        self._transport = transport
        self._clock = clock
        self._lease_time = lease_time
        self._purger = (
            None
            if purging is None
            else Purger(database, clock, purging, lambda: 0 in self._buckets)
        )
        self._buckets: frozenset[int] = frozenset()
        self._horizon = Horizon()
        self._missed: Sequence[OutboxRow] = ()
        self._sweep_now = asyncio.Event()
        self._renew_at = 0.0
        self._valid_until = 0.0
        self._poll = _SHORTEST_POLL
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
            beside = [tasks.create_task(each) for each in (self._listen(), self._sweep())]
            if self._purger is not None:
                beside.append(tasks.create_task(self._purger.run()))
            await self._work(stop)
            for task in beside:
                task.cancel()
        await self._finish()

    async def _work(self, stop: asyncio.Event) -> None:
        reconnect = Reconnect(self._clock)
        while not stop.is_set():
            try:
                with leaks_caught():
                    if not await self.round():
                        await self._idle(stop)
                reconnect.succeeded()
                self.vitals.trouble = ""
            except (Unreachable, Leaked) as error:
                self.vitals.trouble = str(error)
                self._log.warning("relay waits", error=str(error))
                await reconnect.wait()

    async def _listen(self) -> None:
        """Be woken by other processes, where the database can pass that on."""
        reconnect = Reconnect(self._clock)
        while self._database.is_postgresql:
            try:
                with leaks_caught():
                    await notify.listen(self._database, self.wake)
            except (Unreachable, Leaked):  # which the relay itself tells of, too
                await reconnect.wait()
            else:
                self._log.warning(
                    "the database does not pass on what other processes tell: looked every "
                    f"{_LONGEST_POLL:g} s for what they have committed"
                )
                return

    async def _finish(self) -> None:
        """Relay what is left, for a bounded time: others may be adding all the while."""
        until = self._clock.monotonic() + self._lease_time
        try:
            while self._clock.monotonic() < until and await self.round():
                pass
            async with self._database.connection() as connection:
                await leases.release(connection, self.owner)
        except Unreachable as error:
            # Nothing is lost: the rows stay, and the leases end by themselves.
            self._log.warning("relay stops without its last round", error=str(error))

    async def round(self) -> int:
        """Relay one batch; returns how many messages the broker has confirmed."""
        self._wanted.clear()
        await self._keep_leases()
        if not self._buckets:
            return 0
        if self._missed:
            try:
                return await self._bring(self._missed)
            finally:
                self._missed = ()
        rows, seen = await self._look()
        if not rows or (confirmed := await self._bring(rows)) == len(rows):
            self._horizon.seen(self._clock.monotonic(), seen)
            return len(rows)
        self._horizon.stay()
        return confirmed

    async def _look(self) -> tuple[Sequence[OutboxRow], Seen]:
        """Rows to relay, and what will have been seen when they are."""
        now, beyond = self._clock.now(), self._horizon.beyond(self._clock.monotonic())
        async with self._database.queue(reads=True) as connection:
            waiting = await outbox.due(connection, self._buckets, now, BATCH, beyond)
            newest = 0 if waiting else await outbox.newest(connection, beyond)
        rows = within_bytes(waiting, BATCH_BYTES)
        all_due = len(rows) < BATCH and len(rows) == len(waiting)
        return rows, Seen(rows[-1].seq if rows else newest, now if all_due else beyond.due_at)

    async def _bring(self, rows: Sequence[OutboxRow]) -> int:
        """Publish these rows and forget what the broker has; returns how many it has."""
        sent = await self._publish(rows)
        async with self._database.queue() as connection:
            await outbox.delete_confirmed(connection, sent.confirmed)
            await outbox.mark_refused(connection, sent.refused, PARK_AFTER)
        self.vitals.relayed += len(sent.confirmed)
        self.vitals.refused += len(sent.refused)
        if any(row.attempts for row in rows):
            self._sweep_now.set()  # a key may have been set free
        if sent.lost is not None:
            self._horizon.stay()
            raise sent.lost
        return len(sent.confirmed)

    async def _sweep(self) -> None:
        """Look, now and then, at what the rounds leave out: for what was committed very late, and
        for what was held back. It may take long, so that the rounds do not wait for it."""
        pause = SWEEP_EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._sweep_now.wait()
            self._sweep_now.clear()
            began = self._clock.monotonic()
            with suppress(Unreachable, Leaked), leaks_caught():  # the rounds will tell of it
                await self._sweep_once()
            pause = max(SWEEP_EVERY, _SWEEP_SHARE * (self._clock.monotonic() - began))

    async def _sweep_once(self) -> None:
        age, buckets = self._horizon.age, self._buckets
        seen = self._horizon.beyond(self._clock.monotonic())
        if self._missed or seen == NOTHING:
            return
        async with self._database.queue(reads=True) as connection:
            rows = await outbox.due(
                connection, buckets, self._clock.now(), BATCH, seen, behind=True
            )
        if age == self._horizon.age and rows:  # else the next round looks at everything
            self._missed = within_bytes(rows, BATCH_BYTES)
            self.wake()

    async def _publish(self, rows: Sequence[OutboxRow]) -> _Sent:
        """Publish in waves, until the broker is lost; a key whose message was refused is not sent
        on in this round."""
        sent = _Sent()
        held_keys: set[str] = set()
        for wave in [rows] if self._transport.atomic_batches else waves(rows):
            if sent.lost is not None or self._clock.monotonic() >= self._valid_until:
                break  # another relay may have these buckets by now
            sendable = [row for row in wave if row.envelope.key not in held_keys]
            await self._publish_wave(sendable, sent, held_keys)
        return sent

    async def _publish_wave(
        self, rows: Sequence[OutboxRow], sent: _Sent, held_keys: set[str]
    ) -> None:
        """Publish these at once, and enter what became of them."""
        reasons: Mapping[str, str] = {}
        try:
            await self._transport.publish([row.envelope for row in rows])
        except PublishError as error:
            reasons = error.refused
        except PublishInterrupted as error:
            sent.lost, rows = error, [row for row in rows if row.envelope.id in error.confirmed]
        except Unreachable as error:
            sent.lost, rows = error, []
        for row in rows:
            if row.envelope.id not in reasons:
                sent.confirmed.append(row.seq)
                continue
            sent.refused.append(self._refusal(row, reasons[row.envelope.id]))
            if row.envelope.key is not None:
                held_keys.add(row.envelope.key)

    def _refusal(self, row: OutboxRow, reason: str) -> Refusal:
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
        return Refusal(row.seq, reason, self._clock.now() + timedelta(seconds=hold_time(attempt)))

    async def _keep_leases(self) -> None:
        now = self._clock.monotonic()
        if now < self._renew_at:
            return
        async with self._database.connection() as connection:
            buckets = await leases.renew(connection, self.owner, self._lease_time)
        if buckets != self._buckets:
            self._buckets = buckets
            self._database.doorbell.quiet = len(buckets) == BUCKETS
            self._horizon.forget()
            self._missed = ()
        # Counted from before the renewal, and ended early: another's clock may run faster.
        self._valid_until = now + self._lease_time * 0.8
        self._renew_at = now + self._lease_time / 2

    async def _idle(self, stop: asyncio.Event) -> None:
        """Wait for a commit of this process, or for the next look at what others committed."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._wanted, stop)]
        try:
            done, _ = await asyncio.wait(
                waits, timeout=self._poll, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
        self._poll = _SHORTEST_POLL if done else min(self._poll * 2, _LONGEST_POLL)


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


def waves(rows: Iterable[OutboxRow]) -> list[list[OutboxRow]]:
    """Rows in parts that may be sent one after another, none with two messages of one key.

    So a message that is refused has nothing of its key sent before it, whatever else is in flight.
    """
    parts: list[list[OutboxRow]] = []
    next_part: dict[str, int] = {}
    for row in rows:
        key = row.envelope.key
        part = 0 if key is None else next_part.get(key, 0)
        if key is not None:
            next_part[key] = part + 1
        if part == len(parts):
            parts.append([])
        parts[part].append(row)
    return parts
