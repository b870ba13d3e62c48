"""The way of a batch through one handler: read, dedupe, handle, flush the outbox, commit.

A transactional handler's messages share one transaction: as many as are there, up to a bound that
grows with success. When one of them fails, all are rolled back and tried one by one, so that only
the failing one is retried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import structlog
from structlog.contextvars import bound_contextvars

from eventmesh.contracts.message import Message
from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import inbox
from eventmesh.persistence.database import AsyncSession, connection_lost
from eventmesh.persistence.transaction import Outgoing, Transaction
from eventmesh.runtime.delivery import read
from eventmesh.runtime.handler import Handler, Returned
from eventmesh.runtime.retry import decide
from eventmesh.runtime.service import Service
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import DONE, Dead, Outcome, RetryAfter

Settlement = tuple[Delivery, Outcome]
_Readable = tuple[Delivery, Message]


class GroupRunner:
    """Runs the deliveries of one subscription, in their order."""

    def __init__(self, service: Service, handler: Handler) -> None:
        self._service = service
        self._handler = handler
        self._clock = service.clock
        self._settings = service.settings
        self._size = 1
        self._failures = 0
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.delivery")

    @property
    def size(self) -> int:
        """How many deliveries to take next: doubled by success in time, 1 after a failure."""
        return self._size

    async def run(
        self, deliveries: Sequence[Delivery], stopping: Callable[[], bool]
    ) -> list[Settlement]:
        """What became of each delivery. Those not started when `stopping` turns true are left out.

        Unreachable when the database is gone; then nothing of the current group has happened.
        """
        began_at = self._clock.monotonic()
        failures = self._failures
        settlements: list[Settlement] = []
        readable: list[_Readable] = []
        for delivery in deliveries:
            message = read(delivery, self._handler.models, self._settings.max_deliveries)
            if isinstance(message, Dead):
                settlements.append(self._settle(delivery, message))
            else:
                readable.append((delivery, message))
        while readable and not stopping():
            done = await self._run_some(readable)
            settlements.extend(done)
            del readable[: len(done)]
        took = self._clock.monotonic() - began_at
        if self._failures == failures:
            self._size = next_size(
                self._size,
                len(deliveries),
                took,
                self._settings.group_size,
                self._settings.group_time,
            )
        return settlements

    async def _run_some(self, readable: Sequence[_Readable]) -> list[Settlement]:
        """Run the first of these: as many as may share a transaction."""
        if not self._handler.transactional:
            return [await self._run_plain(*readable[0])]
        group = readable[: 1 if self._handler.isolated else self._size]
        try:
            handled = await self._run_group(group)
        except Unreachable:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the policy decides on it
            self._failures += 1
            self._size = 1
            if len(group) > 1:
                return await self._run_some(readable)
            return [self._fail(group[0][0], error)]
        return [self._settle(delivery, DONE) for delivery, _ in group[:handled]]

    async def _run_group(self, group: Sequence[_Readable]) -> int:
        """Handle and commit the first of these in one transaction; returns how many.

        Fewer than all when the time of a group is over: the rest is left as if never begun.
        """
        database = await self._service.database()
        with database.translated():
            session = database.session()
        async with session:
            with database.translated():
                fresh = await self._claim(session, group)
            outgoing: list[Outgoing] = []
            handled = await self._handle_all(session, group, fresh, outgoing)
            with database.translated():
                if handled < len(group):
                    await inbox.unclaim(
                        session,
                        self._handler.subscription.name,
                        sorted(fresh),
                    )
                await self._service.commit(session, outgoing)
        return handled

    async def _claim(self, session: AsyncSession, group: Sequence[_Readable]) -> set[str]:
        ids = [delivery.envelope.unique_id for delivery, _ in group]
        return await inbox.claim(session, self._handler.subscription.name, ids, self._clock.now())

    async def _handle_all(
        self,
        session: AsyncSession,
        group: Sequence[_Readable],
        fresh: set[str],
        outgoing: list[Outgoing],
    ) -> int:
        """Handle in order until the group's time is over; takes what it handled out of `fresh`."""
        until = self._clock.monotonic() + self._settings.group_time
        sender = self._service.sender()
        for number, (delivery, message) in enumerate(group):
            if number and self._clock.monotonic() >= until:
                return number
            envelope = delivery.envelope
            if envelope.unique_id not in fresh:
                with self._context(delivery):
                    self._log.info("duplicate passed over")
                continue
            fresh.remove(envelope.unique_id)
            transaction = Transaction(session, sender, cause=envelope)
            with self._context(delivery):
                returned = await self._call(delivery, message, transaction)
                for result in _messages(returned):
                    transaction.add(result)
            outgoing.extend(transaction.outgoing)
        return len(group)

    async def _call(
        self, delivery: Delivery, message: Message, transaction: Transaction | None
    ) -> Returned:
        try:
            return await self._handler.call(message, delivery.envelope, transaction)
        except Exception as error:
            # A database lost under the handler's own statement is not the message's fault.
            if transaction is not None and connection_lost(error):
                raise Unreachable(f"the database was lost while handling: {error}") from error
            raise

    async def _run_plain(self, delivery: Delivery, message: Message) -> Settlement:
        with self._context(delivery):
            try:
                returned = await self._call(delivery, message, None)
                if returned is not None:
                    raise UsageError(
                        f"the handler of {self._handler.subscription.name} returned a message "
                        f"without a return annotation that declares it"
                    )
            except Exception as error:  # noqa: BLE001  # whatever it is, the policy decides on it
                return self._fail(delivery, error)
        return self._settle(delivery, DONE)

    def _fail(self, delivery: Delivery, error: Exception) -> Settlement:
        # Jitter needs no secret randomness.
        outcome = decide(self._handler.retry, delivery.attempt, error, random.random())  # noqa: S311
        return self._settle(delivery, outcome, error)

    def _settle(
        self, delivery: Delivery, outcome: Outcome, error: Exception | None = None
    ) -> Settlement:
        with self._context(delivery):
            match outcome:
                case RetryAfter(delay):
                    self._log.warning(
                        "will be tried again",
                        attempt=delivery.attempt,
                        delay=round(delay, 3),
                        error=repr(error),
                    )
                case Dead(reason):
                    self._log.error("dead letter", attempt=delivery.attempt, reason=reason)
                case _:
                    self._log.debug("done", attempt=delivery.attempt)
        return delivery, outcome

    def _context(self, delivery: Delivery) -> AbstractContextManager[None]:
        """What every log line of a delivery carries, the handler's own lines included."""
        envelope = delivery.envelope
        return bound_contextvars(
            service=self._service.name,
            subscription=self._handler.subscription.name,
            message_id=envelope.id,
            name=envelope.name,
            correlation_id=envelope.correlation_id,
        )


def _messages(returned: Returned) -> Sequence[Message]:
    match returned:
        case None:
            return ()
        case Message():
            return (returned,)
        case _:
            return returned


def next_size(size: int, taken: int, took: float, most: int, time: float) -> int:
    """How many deliveries to take after a batch without failure: fewer when it took too long, more
    when it was full and in time."""
    if took > time:
        return max(size // 2, 1)
    if taken >= size:
        return min(size * 2, most)
    return size
