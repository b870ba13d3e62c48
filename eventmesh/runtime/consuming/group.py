"""The way of a batch through one handler: read, dedupe, handle, flush the outbox, commit.

A transactional handler's messages share one transaction: as many as are there, up to a bound that
grows with success. When one of them fails, all are rolled back and tried one by one, so that only
the failing one is retried.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress

from eventmesh.contracts.message import Message
from eventmesh.errors import EventMeshError, Reject, Unreachable, UsageError
from eventmesh.persistence import inbox, starts
from eventmesh.persistence.database import (
    AsyncSession,
    comes_from_database,
    connection_cut,
    connection_lost,
)
from eventmesh.persistence.transaction import Outgoing, Transaction
from eventmesh.runtime.cancellation import Leaked, leaks_caught
from eventmesh.runtime.consuming.delivery import poison, read
from eventmesh.runtime.consuming.delivery_log import DeliveryLog
from eventmesh.runtime.declaring.handler import Handler, Returned
from eventmesh.runtime.declaring.reading import Undecided
from eventmesh.runtime.declaring.retry import decide
from eventmesh.runtime.declaring.service import HANDLING, Service
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import DONE, Dead, Outcome
from eventmesh.wire.envelope import Envelope

SUSPECT_AFTER = 3
"""Deliveries, of one attempt, after which a message is handled alone and its starts are counted."""

DOUBTED_AFTER = 2
"""Deliveries after which messages are taken one by one, where no database counts starts. Two may be
innocent: RabbitMQ counts what a consumer that left had fetched, and the first care ends so."""

CALM = 10
"""Messages handed out for the first time, in a row, after which nobody is suspected any more."""

MOST_LOSSES = 5
"""How often in a row the database may be lost while a message is handled, until that counts as a
failure: more often than a network is cut by chance."""


class _HandlerFailed(Exception):
    """The handler failed at a message of a group."""

    def __init__(self, number: int, error: Exception, *, is_its_own: bool) -> None:
        super().__init__(number)
        self.error = error
        self.number = number
        """Which message of the group, counted from 0."""
        self.is_its_own = is_its_own
        """Whether no message that was handled before it in the transaction can have caused it."""


Settlement = tuple[Delivery, Outcome]
_Readable = tuple[Delivery, Message]


class GroupRunner:
    """Runs the deliveries of one subscription, or of one of its lanes, in their order."""

    def __init__(self, service: Service, handler: Handler, vitals: SubscriptionVitals) -> None:
        self._service = service
        self._vitals = vitals
        self.handler = handler
        self._clock = service.clock
        self._settings = service.settings
        # Without a database the broker's count has to do, which has in it what nobody began.
        self._counts_starts = service.needs_database
        enough = max(self._settings.max_deliveries, SUSPECT_AFTER + 2)
        self._most_deliveries = math.inf if self._counts_starts else enough
        self.careful = not self._counts_starts
        """Whether to take one message at a time from the broker, so that what kills its worker is
        counted, and nothing beside it. So it is at first: the worker before may have been killed.
        """
        self._calm = 0
        self._size = 1
        # Without the statements that a group shares: where these are slow, large groups are best.
        self._handlers_took = 0.0
        self._failures = 0
        self._answered = False
        self._losses = ("", 0)
        self._log = DeliveryLog(service.name, handler.subscription.name, vitals.seen_errors)

    @property
    def size(self) -> int:
        """How many deliveries to take next: grown by success in time, 1 after a failure."""
        return 1 if self.careful else self._size

    async def run(
        self, deliveries: Sequence[Delivery], stopping: Callable[[], bool]
    ) -> list[Settlement]:
        """What became of each delivery. Those not started when `stopping` turns true are left out;
        all are, when they are to be taken again more carefully.

        Unreachable when the database is gone; then nothing of the current group has happened.
        """
        if not self._counts_starts and self._grows_careful(deliveries):
            self._log.careful()
            return []
        began_at, failures = self._clock.monotonic(), self._failures
        self._handlers_took = 0.0
        HANDLING.set(self._service.name if self.handler.transactional else "")
        with self._log.batch():
            settlements, readable = await self._read(deliveries)
            if self.handler.transactional:
                await self._run_in_groups(readable, settlements, stopping)
            else:
                await self._run_plainly(readable, settlements, stopping)
        if self._failures == failures:
            shared = self.handler.transactional and not self.handler.isolated
            took = self._handlers_took if shared else self._clock.monotonic() - began_at
            settings = self._settings
            self._size = next_size(
                self._size, len(deliveries), took, settings.group_size, settings.group_time
            )
        return settlements

    def _grows_careful(self, deliveries: Sequence[Delivery]) -> bool:
        """Whether these are to be given back and taken one by one, as some were handed out too
        often. Care ends after CALM messages in a row that were handed out for the first time."""
        if any(delivery.deliveries > DOUBTED_AFTER for delivery in deliveries):
            was_careful, self.careful, self._calm = self.careful, True, 0
            return not was_careful
        self._calm += sum(delivery.deliveries == 1 for delivery in deliveries)
        self.careful = self.careful and self._calm < CALM
        return False

    async def _read(
        self, deliveries: Sequence[Delivery]
    ) -> tuple[list[Settlement], list[_Readable]]:
        """Those that can never be handled, settled; and the others with their messages."""
        settlements: list[Settlement] = []
        readable: list[_Readable] = []
        for delivery in deliveries:
            message = await self._read_one(delivery)
            if isinstance(message, Dead):
                settlements.append(self._settle(delivery, message))
            else:
                readable.append((delivery, message))
        return settlements, readable

    async def _read_one(self, delivery: Delivery) -> Message | Dead:
        readings, handler = self._service.readings, self.handler
        while True:
            try:
                return read(
                    delivery,
                    handler.models,
                    self._most_deliveries,
                    readings.judge,
                    handler.sources,
                )
            except Undecided as question:
                await readings.look_up(question)

    async def _run_plainly(
        self,
        readable: Sequence[_Readable],
        settlements: list[Settlement],
        stopping: Callable[[], bool],
    ) -> None:
        """Call a handler that has no part in a transaction, message by message."""
        for delivery, message in readable:
            if stopping():
                return
            if self._counts_starts and is_suspect(delivery):
                settlements.append(await self._handle_plain_suspect(delivery, message))
            else:
                settlements.append(await self._handle_plainly(delivery, message))

    async def _handle_plainly(self, delivery: Delivery, message: Message) -> Settlement:
        self._log.turn_to(delivery)
        try:
            async with self._in_time():
                with leaks_caught():
                    returned = await self.handler.call(message, delivery.envelope, None)
            self._refuse_returned(returned)
        except Exception as error:  # noqa: BLE001  # whatever it is, the policy decides on it
            return self._fail(delivery, error)
        return self._settle(delivery, DONE)

    async def _handle_plain_suspect(self, delivery: Delivery, message: Message) -> Settlement:
        """Count its start, handle it, and forget the count. A database that is away keeps nothing
        from being handled: what was handled before it in its batch must be settled, not repeated.
        """
        with suppress(Unreachable):
            if dead := await self._try_suspect(delivery):
                return self._settle(delivery, dead)
        settlement = await self._handle_plainly(delivery, message)
        with suppress(Unreachable):
            await self._forget_suspect(delivery)
        return settlement

    async def _run_in_groups(
        self,
        readable: Sequence[_Readable],
        settlements: list[Settlement],
        stopping: Callable[[], bool],
    ) -> None:
        """Handle messages in as few transactions as may be, one by one after a failure.

        When the handler fails at message 7 of a group of 10, all ten are rolled back. Messages 1 to
        6 are handled again, one by one. If they succeed, what message 7 has seen of them holds, so
        its failure stands, without another call of the handler. If one of them fails this time,
        or if the error of message 7 may come from sharing a transaction, it is handled again alone.
        """
        begun = 0
        failed: tuple[int, Exception] | None = None
        """The message whose failure stands once all before it have been handled, and its error."""
        while begun < len(readable):
            first = readable[begun][0]
            if failed is not None and failed[0] == begun:
                if is_suspect(first):
                    await self._forget_suspect(first)
                settlements.append(self._fail(first, failed[1]))
                failed = None
                begun += 1
                continue
            if stopping():
                return
            group = next_group(readable[begun:], 1 if self.handler.isolated else self._size)
            self._answered = False
            try:
                if is_suspect(first) and (dead := await self._try_suspect(first)):
                    settlements.append(self._settle(first, dead))
                    begun += 1
                    continue
                handled = await self._run_group(group)
            except Unreachable as error:
                if not self._loses_the_database(group, error):
                    raise
                failed = begun, error
            except _HandlerFailed as failure:
                self._failures += 1
                self._size = 1
                failed = (begun + failure.number, failure.error) if failure.is_its_own else None
            except Exception as error:  # noqa: BLE001  # whatever it is, the policy decides on it
                self._failures += 1
                self._size = 1
                failed = (begun, error) if len(group) == 1 else None
            else:
                done = [delivery for delivery, _ in group[:handled]]
                settlements.extend(self._settle(delivery, DONE) for delivery in done)
                begun += handled

    async def _run_group(self, group: Sequence[_Readable]) -> int:
        """Handle and commit the first of these in one transaction; returns how many.

        Fewer than all when the time of a group is over: the rest is left as if never begun.
        """
        database = await self._service.database()
        async with database.session() as session:
            with database.own_statements():
                ids = [delivery.envelope.unique_id for delivery, _ in group]
                digests = [inbox.digest_of(delivery.envelope) for delivery, _ in group]
                name = self.handler.subscription.name
                # Reversed, so that of two messages with the same id the first one counts.
                messages = dict(zip(reversed(ids), reversed(digests), strict=True))
                claim = await inbox.claim(session, name, messages)
            self._answered = True
            outgoing: list[Outgoing] = []
            began_at = self._clock.monotonic()
            handled = await self._handle_all(session, group, ids, claim, outgoing)
            async with self._in_time():
                with database.translated():
                    proved = await self._service.flush(session)
                    self._handlers_took += self._clock.monotonic() - began_at
                    if handled < len(group):
                        await inbox.unclaim(session, name, sorted(claim.fresh))
                    if is_suspect(group[0][0]):
                        await starts.forget(session, *self._starts_key(group[0][0]))
                    await self._service.commit(session, outgoing, proved=proved)
        return handled

    def _loses_the_database(self, group: Sequence[_Readable], error: Unreachable) -> bool:
        """Whether the connection, which had answered before, was cut while this message was handled
        alone, and that again and again: then it is what the database ends connections for, or what
        brings it down, and the policy decides, rather than that it stands in the way for ever.
        A database that lives and declines, as with a full disk, is waited for."""
        if not (self._answered and connection_cut(error.__cause__)):
            return False
        self._failures += 1
        self._size = 1
        if len(group) > 1:
            return False
        message_id = group[0][0].envelope.unique_id
        before = self._losses[1] if self._losses[0] == message_id else 0
        self._losses = (message_id, before + 1)
        return before + 1 >= MOST_LOSSES

    async def _try_suspect(self, delivery: Delivery) -> Dead | None:
        """Note, in a transaction of its own, that its handling begins; Dead when too often."""
        database = await self._service.database()
        most = max(self._settings.max_deliveries - SUSPECT_AFTER, 1)
        async with database.connection() as connection:
            begun = await starts.note(connection, *self._starts_key(delivery))
            if begun <= most:
                return None
            await starts.forget(connection, *self._starts_key(delivery))
        return Dead(
            f"{poison(delivery)}. From delivery {SUSPECT_AFTER + 1} on its handler's starts are "
            f"counted: {most} of them never came to an end"
        )

    async def _forget_suspect(self, delivery: Delivery) -> None:
        """Its handling came to an end, whatever the end: it kills nobody."""
        database = await self._service.database()
        async with database.connection() as connection:
            await starts.forget(connection, *self._starts_key(delivery))

    def _starts_key(self, delivery: Delivery) -> tuple[str, str]:
        return self.handler.subscription.name, delivery.envelope.unique_id

    async def _handle_all(
        self,
        session: AsyncSession,
        group: Sequence[_Readable],
        ids: Sequence[str],
        claim: inbox.Claim,
        outgoing: list[Outgoing],
    ) -> int:
        """Handle in order until the group's time is over; takes what it handled out of what is
        fresh in the claim. Reject for a message whose id stands for another one."""
        until = self._clock.monotonic() + self._settings.group_time
        sender = self._service.sender()
        is_first = True
        for number, (delivery, message) in enumerate(group):
            if number and self._clock.monotonic() >= until:
                return number
            envelope = delivery.envelope
            self._log.turn_to(delivery)
            if ids[number] not in claim.fresh:
                _refuse_other(claim, ids[number], envelope)
                self._log.duplicate()
                self._vitals.duplicates += 1
                continue
            claim.fresh.remove(ids[number])
            transaction = Transaction(session, sender, cause=envelope)
            try:
                for result in _messages(await self._call(delivery, message, transaction)):
                    transaction.add(result)
            except Unreachable:
                raise
            except Exception as error:
                is_its_own = is_first or not may_come_from_sharing(error)
                raise _HandlerFailed(number, error, is_its_own=is_its_own) from error
            transaction.end()
            outgoing.extend(transaction.outgoing)
            is_first = False
        return len(group)

    async def _call(
        self, delivery: Delivery, message: Message, transaction: Transaction
    ) -> Returned:
        try:
            async with self._in_time():
                with leaks_caught():
                    return await self.handler.call(message, delivery.envelope, transaction)
        except Unreachable as error:
            # Not our database, or our statements would have said so: the policy decides.
            raise RuntimeError(f"something the handler asked is unreachable: {error}") from error
        except Exception as error:
            # A database lost under the handler's own statement is not the message's fault.
            if connection_lost(error):
                raise Unreachable(f"the database was lost while handling: {error}") from error
            raise

    def _in_time(self) -> AbstractAsyncContextManager[None]:
        """Cancel what takes longer than the handler may; TimeoutError then. A statement that was
        being run takes its connection with it."""
        most = self.handler.timeout
        return nullcontext() if most is None else self._limited(most)

    @asynccontextmanager
    async def _limited(self, most: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(most) as limit:
                yield
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(f"the handler took longer than its {most:g} s") from error
            raise

    def _refuse_returned(self, returned: Returned) -> None:
        """UsageError when a handler without a transaction, whose annotations declare no message,
        returns one, or anything else."""
        if _messages(returned):
            raise UsageError(
                f"the handler of {self.handler.subscription.name} returned a message without a "
                f"return annotation that declares it"
            )

    def _fail(self, delivery: Delivery, error: Exception) -> Settlement:
        # Jitter needs no secret randomness.
        outcome = decide(self.handler.retry, delivery.attempt, error, random.random())  # noqa: S311
        return self._settle(delivery, outcome, error)

    def _settle(
        self, delivery: Delivery, outcome: Outcome, error: Exception | None = None
    ) -> Settlement:
        self._log.settled(delivery, outcome, error)
        return delivery, outcome


def _refuse_other(claim: inbox.Claim, message_id: str, envelope: Envelope) -> None:
    """Reject where the inbox has this id for a message with other data: it is not a duplicate, and
    must not be lost as one."""
    if claim.is_other(message_id, inbox.digest_of(envelope)):
        raise Reject(
            f"the id {envelope.id!r} was already used for a message with other data, which has "
            f"taken effect: whoever publishes it must give each message an id of its own"
        )


def _messages(returned: object) -> Sequence[Message]:
    """The messages in what a handler returned; UsageError when it is anything else."""
    match returned:
        case None:
            return ()
        case Message():
            return (returned,)
        case type():
            others = [f"the class {returned.__name__}"]
        case Iterable() if not isinstance(returned, str | bytes | Mapping):
            messages = tuple(returned)
            others = sorted({type(it).__name__ for it in messages if not isinstance(it, Message)})
            if not others:
                return messages
        case _:
            others = [type(returned).__name__]
    raise UsageError(
        f"it returned {' and '.join(others)}, and a handler returns an Event or a Command, several "
        f"of them as a list, or None"
    )


def may_come_from_sharing(error: Exception) -> bool:
    """Whether a message's failure may be due to those before it in its transaction: a deadlock over
    rows that they locked, rows of theirs that its first query had to write, a transaction that one
    of them has broken and caught the error."""
    if isinstance(error, EventMeshError | Leaked) and not isinstance(error, Reject):
        return True
    return comes_from_database(error)


def is_suspect(delivery: Delivery) -> bool:
    """Whether it was handed out so often that it may be killing its workers."""
    return delivery.deliveries > SUSPECT_AFTER


def next_group(readable: Sequence[_Readable], size: int) -> Sequence[_Readable]:
    """The first messages that may share a transaction; a suspect is alone."""
    for number, (delivery, _) in enumerate(readable[:size]):
        if is_suspect(delivery):
            return readable[: max(number, 1)]
    return readable[:size]


def next_size(size: int, taken: int, took: float, most: int, time: float) -> int:
    """How many deliveries to take after a batch of `taken` without failure that `took` so many
    seconds: as many as fit into `time`, but at least half as many as before and at most twice as
    many, and more only when the batch was full."""
    fitting = int(min(taken * time / took, most)) if took else most
    if took > time:
        return max(min(fitting, size), size // 2, 1)
    if taken >= size:
        return min(max(fitting, size), size * 2, most)
    return size
