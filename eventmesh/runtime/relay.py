"""The relay: brings what transactions have put into the outbox to the broker, in order by key.

One a worker process and service. A bucket of the outbox is relayed by one relay at a time; a relay
that dies is replaced when its leases end. A message may be published twice, which the inbox of its
subscribers passes over, but none is deleted before the broker has confirmed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, PublishInterrupted, Unreachable
from eventmesh.persistence import leases, outbox
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import OutboxRow, Refusal
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.cancellation import Leaked, leaks_caught
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.transports.base import Transport

BATCH = 500
"""How many messages a round relays at the most."""

BATCH_BYTES = 4 * 1024 * 1024
"""How many bytes of data a round relays at the most, if that is more than one message."""

PARK_AFTER = 10
"""After how many refusals by the broker a message is parked, and its key with it."""

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
    ) -> None:
        self.owner = clock.new_id()
        self.vitals = RelayVitals(service)
        self._database = database
        self._transport = transport
        self._clock = clock
        self._lease_time = lease_time
        self._buckets: frozenset[int] = frozenset()
        self._renew_at = 0.0
        self._valid_until = 0.0
        self._poll = _SHORTEST_POLL
        self._wanted = asyncio.Event()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.relay").bind(
            service=service
        )

    def wake(self) -> None:
        """Look into the outbox now: this process has committed to it."""
        self._wanted.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Relay until `stop`, then what is left, and give up the leases."""
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
        await self._finish()

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
        async with self._database.reading() as connection:
            waiting = await outbox.due(connection, self._buckets, self._clock.now(), BATCH)
        rows = within_bytes(waiting, BATCH_BYTES)
        if not rows:
            return 0
        sent = await self._publish(rows)
        async with self._database.connection() as connection:
            await outbox.delete_confirmed(connection, sent.confirmed)
            await outbox.mark_refused(connection, sent.refused, PARK_AFTER)
        self.vitals.relayed += len(sent.confirmed)
        self.vitals.refused += len(sent.refused)
        if sent.lost is not None:
            raise sent.lost
        return len(sent.confirmed)

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
            self._buckets = await leases.renew(connection, self.owner, self._lease_time)
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
