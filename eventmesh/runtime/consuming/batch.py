"""A batch of deliveries on its way through one handler: read, dedupe, handle, commit.

The messages of a transactional handler share a transaction, which makes them fast: a group of 100
costs one INSERT into the inbox, one into the outbox and one commit. When one message fails, its
group is rolled back and the messages are handled one by one, so that only the failing one is
retried. A lost database is waited for, and costs no message an attempt.

    100 deliveries → read (2 cannot be: dead letters) → group of 98 → message 7 fails, rollback
                   → messages 1 to 6, one by one → 7 is retried later → 8 to 98, one by one

If the subscription has an order, what comes after a failed message of its key is not handled: it
comes again behind it.

Nothing is settled on the broker here: `run` returns what is to become of each delivery.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

from eventmesh.contracts.message import Message
from eventmesh.errors import EventMeshError, Reject, Unreachable
from eventmesh.persistence import inbox
from eventmesh.persistence.counts import Way, way_of
from eventmesh.persistence.database_errors import comes_from_database, connection_cut
from eventmesh.persistence.transaction import Transaction
from eventmesh.persistence.unit_of_work import UnitOfWork
from eventmesh.runtime.cancellation import LeakedCancellation, leaked_cancellations_raised
from eventmesh.runtime.consuming.delivery import read
from eventmesh.runtime.consuming.delivery_log import DeliveryLog
from eventmesh.runtime.consuming.pacing import next_size
from eventmesh.runtime.consuming.poison import StartCounts, delivery_limit, is_suspect
from eventmesh.runtime.declaring.handler import HANDLERS_CLOCK, Handler, Returned
from eventmesh.runtime.declaring.reading import Undecided
from eventmesh.runtime.declaring.retry import decide
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.service import Handling
from eventmesh.runtime.own_context import InOwnContext
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.tracing.port import NO_CONSUMER_TRACING, ConsumerTracing
from eventmesh.transports.base import Delivery
from eventmesh.transports.ordering import settleable
from eventmesh.transports.outcome import DONE, Dead, Outcome
from eventmesh.wire.envelope import Envelope

MOST_CUTS = 5
"""How often in a row the connection to the database may be cut while a message is handled, until
that counts as a failure of the message: more often than a network is cut by chance."""


class _ConnectionCut(Unreachable):
    """The connection to the database, which had answered before, was cut during a transaction."""

    def __init__(self, error: Unreachable, *, in_commit: bool) -> None:
        super().__init__(str(error))
        self.in_commit = in_commit
        """Whether the commit had begun, so that it may have taken effect."""


class _CommitFailed(Exception):
    """The commit failed, or took too long; it may have taken effect all the same."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


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


@dataclass(frozen=True, slots=True)
class _Result:
    """What became of the readable messages of a batch."""

    settlements: list[Settlement]
    handlers_took: float = 0.0
    """Seconds, without the statements that a group shares."""
    has_failed: bool = False
    """Whether a transaction failed, so that the messages after it were handled one by one."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """A message whose failure stands once all before it have been handled."""

    number: int
    """Which of the readable messages, counted from 0."""
    error: Exception
    in_commit: bool = False
    """Whether it failed when its transaction was committed, which may have taken effect."""


@dataclass(slots=True)
class _CutsInARow:
    """How often the connection was cut during the same message, which was the last one it was cut
    during."""

    message_id: str = ""
    count: int = 0

    def note(self, delivery: Delivery) -> int:
        """Count one more cut; returns how many in a row hit this message."""
        message_id = delivery.envelope.unique_id
        self.count = self.count + 1 if message_id == self.message_id else 1
        self.message_id = message_id
        return self.count


async def _raise(error: Unreachable) -> None:
    raise error


class BatchRunner:
    """Runs the deliveries of one subscription, or of one of its lanes, in order.

    Once `is_ending` returns True, nothing more is begun. `wait_for_database` is awaited between two
    tries to reach a lost database; without it, the loss is raised as Unreachable. `tracing` is told
    of the deliveries before they are run. `suspects` is held while one is handled: see `poison`.
    """

    def __init__(
        self,
        service: Service,
        handler: Handler,
        vitals: SubscriptionVitals,
        is_ending: Callable[[], bool] = lambda: False,
        wait_for_database: Callable[[Unreachable], Awaitable[None]] | None = None,
        tracing: ConsumerTracing = NO_CONSUMER_TRACING,
        suspects: asyncio.Lock | None = None,
    ) -> None:
        self.handler = handler
        self.size = 1
        """How many deliveries to take next, see `pacing`; at the same time the most that share a
        transaction."""
        self._service = service
        self._vitals = vitals
        self._clock = service.clock
        self._settings = service.settings
        self._is_ending = is_ending
        self._wait_for_database = wait_for_database or _raise
        self._starts = StartCounts(service, handler.subscription.name)
        self._starts_are_counted = service.needs_database
        self._suspects = suspects or asyncio.Lock()
        self._is_ordered = handler.subscription.order is not None
        self._delivery_limit = delivery_limit(
            service.settings.max_deliveries, starts_are_counted=service.needs_database
        )
        self._cuts = _CutsInARow()
        self.tracing = tracing
        """Of the lane: whoever receives and settles its deliveries tells it so."""
        self._log = DeliveryLog(
            service.name, handler.subscription.name, vitals.seen_errors, tracing
        )

    async def run(self, deliveries: Sequence[Delivery]) -> list[Settlement]:
        """What became of each delivery; those that were not begun before the end are left out.

        A lost database is waited for, and what was not committed by then is handled again.
        """
        HANDLERS_CLOCK.set(self._clock)
        began_at = self._clock.monotonic()
        with self._log.batch():
            dead, readable = await self._read(deliveries)
            if self.handler.transactional:
                # Outside the handler, too: listeners of the application run in flushes and commits.
                with Handling(self._service.name):
                    result = await self._run_in_groups(readable)
            else:
                result = await self._run_plainly(readable)
        shares = self.handler.transactional and not self.handler.isolated
        if not self.handler.is_paced:
            took = 0.0
        elif shares:
            # Without the statements that a group shares: where these are slow, large groups are
            # best.
            took = result.handlers_took
        else:
            took = self._clock.monotonic() - began_at
        most, time = self._settings.group_size, self._settings.group_time
        self.size = (
            1 if result.has_failed else next_size(self.size, len(deliveries), took, most, time)
        )
        settlements = dead + result.settlements
        return settleable(deliveries, settlements) if self._is_ordered else settlements

    async def _read(
        self, deliveries: Sequence[Delivery]
    ) -> tuple[list[Settlement], list[_Readable]]:
        """Settlements of those that can never be handled; and the others, with their messages."""
        dead: list[Settlement] = []
        readable: list[_Readable] = []
        readings, handler = self._service.readings, self.handler
        for delivery in deliveries:
            message: Message | Dead | None = None
            while message is None:
                try:
                    message = read(
                        delivery,
                        handler.models,
                        self._delivery_limit,
                        readings.judge,
                        handler.sources,
                    )
                except Undecided as question:
                    await readings.look_up(question)
            if isinstance(message, Dead):
                dead.append(self._settle(delivery, message))
            elif not self._is_behind(delivery, dead):
                readable.append((delivery, message))
        return dead, readable

    def _is_behind(self, delivery: Delivery, failed: Sequence[Settlement]) -> bool:
        """Whether it must wait for one of these, which failed and came before it."""
        if not (self._is_ordered and failed):
            return False
        key = delivery.envelope.key
        return any(each.envelope.key == key for each, _ in failed)

    def _left(
        self, readable: Sequence[_Readable], begun: int, failed: Settlement
    ) -> Sequence[_Readable]:
        """What may still be handled from `begun` on, after this one has failed."""
        if not self._is_ordered:
            return readable
        left = [each for each in readable[begun:] if not self._is_behind(each[0], [failed])]
        return [*readable[:begun], *left]

    async def _run_plainly(self, readable: Sequence[_Readable]) -> _Result:
        """Call a handler without a transaction: message by message, or, if it takes batches, with
        as many as there are, and one by one after a failure.

        The starts of suspects are counted if the service has a database. Handling does not wait
        when that is unreachable, since the messages handled before would have to wait, too, and
        might be delivered again.
        """
        settlements: list[Settlement] = []
        takes_several = self.handler.call_batch is not None and not self.handler.isolated
        size, has_failed, begun = self.size if takes_several else 1, False, 0
        while begun < len(readable) and not self._is_ending():
            group = next_group(readable, begun, size)
            first = group[0][0]
            dead: Dead | None = None
            error: Exception | None = None
            if is_suspect(first):
                async with self._suspects:
                    if self._is_ending():
                        break
                    dead, error = await self._call_with_suspect(group)
            else:
                error = await self._call_plainly(group)
            if error is not None and len(group) > 1:
                self._log.batch_failed(len(group), error)
                size, has_failed = 1, True
                continue
            begun += len(group)
            if dead is not None:
                failed = self._settle(first, dead)
            elif error is not None:
                failed = self._fail(first, error)
            else:
                settlements += [self._settle(delivery, DONE) for delivery, _ in group]
                continue
            settlements.append(failed)
            readable = self._left(readable, begun, failed)
        return _Result(settlements, has_failed=has_failed)

    async def _call_plainly(self, group: Sequence[_Readable]) -> Exception | None:
        """Call the handler without a transaction; returns the error that it raised."""
        try:
            with self.tracing.processing([delivery for delivery, _ in group]):
                returned = await self._call(group, None)
                if returned is not None:
                    self.handler.messages_in(returned)
        except Exception as error:  # noqa: BLE001  # whatever it is, the policy decides on it
            return error
        return None

    async def _call_with_suspect(
        self, group: Sequence[_Readable]
    ) -> tuple[Dead | None, Exception | None]:
        """The same, with the start of a suspect counted; or Dead where it began too often."""
        [(suspect, _)] = group
        if not self._starts_are_counted:
            return None, await self._call_plainly(group)
        with suppress(Unreachable):
            if dead := await self._starts.begin(suspect):
                return dead, None
        error = await self._call_plainly(group)
        with suppress(Unreachable):
            await self._starts.end(suspect)
        return None, error

    async def _run_in_groups(self, readable: Sequence[_Readable]) -> _Result:
        """Handle messages in as few transactions as possible, one by one after a failure.

        When the handler fails at message 7 of a group of 10, all ten are rolled back. Messages 1 to
        6 are handled again, one by one. If they succeed, what message 7 has seen of them holds, so
        its failure stands, without another call of the handler. If one of them fails this time,
        or if the error of message 7 may come from sharing a transaction, it is handled again alone.
        When a batch handler fails, nobody can tell at which message: all are handled again.

        A failure whose transaction was already being committed says nothing about what was
        committed: the answer may have been lost, or come too late. So the inbox is asked first, and
        where it has the message, that has not failed.

        A lost database costs no attempt: the group is handled again when it is back. Except that
        a message whose connection is cut MOST_CUTS times in a row, while it is handled alone, has
        failed: it may be what brings the database down, or what it ends connections for. A
        database that lives and declines, as with a full disk, is waited for however long it takes.
        """
        settlements: list[Settlement] = []
        size = 1 if self.handler.isolated else self.size
        takes_several = self.handler.call_batch is not None
        handlers_took, has_failed, begun = 0.0, False, 0
        failed: _Failed | None = None
        start_counted: Delivery | None = None
        """The suspect whose start is counted. It is not counted again when the database was lost
        while it was handled: a start without an end stands for the death of a process."""
        while begun < len(readable):
            first = readable[begun][0]
            fails_now = failed is not None and failed.number == begun
            group = next_group(readable, begun, size)
            try:
                async with self._turn_of(first):
                    if self._is_ending() and not fails_now:
                        break
                    if failed is not None and fails_now:
                        if failed.in_commit and await self._was_committed(first):
                            self._log.committed_despite(first, failed.error)
                            settlements.append(self._settle(first, DONE))
                            failed, begun = None, begun + 1
                            continue
                        if is_suspect(first):
                            await self._starts.end(first)
                        settlements.append(self._fail(first, failed.error))
                        failed, begun = None, begun + 1
                        readable = self._left(readable, begun, settlements[-1])
                    elif (
                        is_suspect(first)
                        and first is not start_counted
                        and (dead := await self._starts.begin(first))
                    ):
                        settlements.append(self._settle(first, dead))
                        failed, begun = None, begun + 1
                        readable = self._left(readable, begun, settlements[-1])
                    else:
                        start_counted = first if is_suspect(first) else None
                        with self.tracing.transaction():
                            handled, took = await self._run_group(group)
                        handlers_took += took
                        settlements.extend(self._settle(each, DONE) for each, _ in group[:handled])
                        begun += handled
            except _ConnectionCut as error:
                has_failed, size = True, 1
                if len(group) == 1 and self._cuts.note(first) >= MOST_CUTS:
                    failed = _Failed(begun, error, in_commit=error.in_commit)
                else:
                    await self._wait_for_database(error)
            except Unreachable as error:
                await self._wait_for_database(error)
                if self._is_ending():
                    break
            except _HandlerFailed as failure:
                if takes_several and len(group) > 1:
                    self._log.batch_failed(len(group), failure.error)
                has_failed, size, failed = True, 1, None
                if failure.is_its_own:
                    failed = _Failed(begun + failure.number, failure.error)
            except _CommitFailed as failure:
                if takes_several and len(group) > 1:
                    self._log.batch_failed(len(group), failure.error)
                has_failed, size, failed = True, 1, None
                if len(group) == 1:
                    failed = _Failed(begun, failure.error, in_commit=True)
            except Exception as error:  # noqa: BLE001  # whatever it is, the policy decides on it
                if takes_several and len(group) > 1:
                    self._log.batch_failed(len(group), error)
                has_failed, size = True, 1
                failed = _Failed(begun, error) if len(group) == 1 else None
        return _Result(settlements, handlers_took, has_failed=has_failed)

    def _turn_of(self, delivery: Delivery) -> AbstractAsyncContextManager[object]:
        """While the context is open, no other suspect is handled, if this is one."""
        return self._suspects if is_suspect(delivery) else nullcontext()

    async def _run_group(self, group: Sequence[_Readable]) -> tuple[int, float]:
        """Handle and commit the first of these in one transaction; returns how many, and how many
        seconds their handlers took. Fewer than all when the time of a group is over: the rest is
        left as if never begun."""
        database = await self._service.database()
        name = self.handler.subscription.name
        async with database.unit_of_work(self._service.sender()) as unit:
            with database.own_statements():
                journal = self._settings.journal
                entries = [
                    inbox.Entry.of(each.envelope, each.attempt, journal=journal)
                    for each, _ in group
                ]
                ids = [entry.message_id for entry in entries]
                ways = _ways(name, group, ids)
                claim = await inbox.claim(unit.session, name, entries, ways)
            try:
                began_at = self._clock.monotonic()
                handled, times = await self._handle_all(unit, group, ids, claim)
                async with self._in_time():
                    await unit.flush()
                    took = self._clock.monotonic() - began_at
                    with database.translated():
                        if handled < len(group):
                            left = sorted(claim.fresh - times.keys())
                            await inbox.unclaim(unit.session, name, left)
                        unit.count(_uncounted(ways, times, claim))
                        slow = {each: time for each, time in times.items() if time >= inbox.SLOW}
                        if slow and journal:
                            await inbox.note_slow(unit.session, name, slow)
                        if is_suspect(group[0][0]):
                            await self._starts.end_with(unit.session, group[0][0])
                    await unit.commit()
            except Unreachable as error:
                if connection_cut(error.__cause__):
                    cut = _ConnectionCut(error, in_commit=unit.is_committing)
                    raise cut from error.__cause__
                raise
            except Exception as error:
                if unit.is_committing:
                    raise _CommitFailed(error) from error
                raise
        return handled, took

    async def _was_committed(self, delivery: Delivery) -> bool:
        """Whether a transaction that handled this message, and whose commit nobody has confirmed,
        has taken effect. Where its commit is still going on, the claim waits for it."""
        database = await self._service.database()
        entry = inbox.Entry.of(delivery.envelope, delivery.attempt)
        name = self.handler.subscription.name
        async with database.unit_of_work(self._service.sender()) as unit:
            with database.own_statements():
                claim = await inbox.claim(unit.session, name, [entry])
        return entry.message_id not in claim.fresh

    async def _handle_all(
        self,
        unit: UnitOfWork,
        group: Sequence[_Readable],
        ids: Sequence[str],
        claim: inbox.Claim,
    ) -> tuple[int, dict[str, float]]:
        """Handle in order until the group's time is over; a batch handler gets all at once. Returns
        how many were seen to, and the ids of those that were handled and not skipped as duplicates,
        with the seconds that each took. Reject for a message whose id stands for another one."""
        now = self._clock.monotonic()
        until = now + self._settings.group_time
        takes_several = self.handler.call_batch is not None
        batch: list[_Readable] = []
        handled: dict[str, float] = {}
        for number, readable in enumerate(group):
            if number and not takes_several and now >= until:
                return number, handled
            if ids[number] in handled or ids[number] not in claim.fresh:
                _refuse_other(claim, ids[number], readable[0].envelope)
                self._log.duplicate(readable[0])
                self._vitals.duplicates += 1
                continue
            if takes_several:
                batch.append(readable)
            else:
                try:
                    await self._handle(unit, [readable])
                except Unreachable:
                    raise
                except Exception as error:
                    is_its_own = not handled or not may_come_from_sharing(error)
                    raise _HandlerFailed(number, error, is_its_own=is_its_own) from error
            began_at, now = now, self._clock.monotonic()
            handled[ids[number]] = now - began_at
        if batch:
            try:
                await self._handle(unit, batch)
            except Unreachable:
                raise
            except Exception as error:
                number = group.index(batch[0])
                raise _HandlerFailed(number, error, is_its_own=len(batch) == 1) from error
            share = (self._clock.monotonic() - now) / len(batch)
            handled = dict.fromkeys(handled, share)
        return len(group), handled

    async def _handle(self, unit: UnitOfWork, called_with: Sequence[_Readable]) -> None:
        """Call the handler once, and publish what it returns. Unreachable when our transaction is
        lost, which is not the message's fault, and only then."""
        causes = [(message, delivery.envelope) for delivery, message in called_with]
        with (
            unit.transaction(causes) as transaction,
            Handling(self._service.name),
            self.tracing.processing([delivery for delivery, _ in called_with]),
        ):
            try:
                returned = await self._call(called_with, transaction)
            except Unreachable as error:
                # Not our database, or our statements would have said so: the policy decides.
                raise RuntimeError(
                    f"something the handler asked is unreachable: {error}"
                ) from error
            except Exception as error:
                if unit.is_lost(error):
                    raise Unreachable(f"the database was lost while handling: {error}") from error
                raise
            for result in self.handler.messages_in(returned):
                transaction.add(result)

    async def _call(self, group: Sequence[_Readable], transaction: Transaction | None) -> Returned:
        """One call of the handler, with one message or, if it takes batches, with several."""
        if len(group) == 1:
            [(delivery, message)] = group
            self._log.turn_to(delivery)
            called = self.handler.call(message, delivery.envelope, transaction)
        else:
            assert self.handler.call_batch is not None  # noqa: S101
            self._log.turn_to_batch()
            called = self.handler.call_batch(
                [message for _, message in group],
                [delivery.envelope for delivery, _ in group],
                transaction,
            )
        if self.handler.timeout is None:
            with leaked_cancellations_raised():
                return await InOwnContext(called)
        async with _limited(self.handler.timeout, "the handler took longer than its"):
            with leaked_cancellations_raised():
                return await InOwnContext(called)

    def _in_time(self) -> AbstractAsyncContextManager[None]:
        """Cancel a commit that takes longer than the handler's timeout, and raise TimeoutError. A
        statement that is cancelled closes its connection."""
        most = self.handler.timeout
        if most is None:
            return nullcontext()
        return _limited(most, "its commit took longer than the handler's")

    def _fail(self, delivery: Delivery, error: Exception) -> Settlement:
        # Jitter needs no secret randomness.
        outcome = decide(self.handler.retry, delivery.attempt, error, random.random())  # noqa: S311
        return self._settle(delivery, outcome, error)

    def _settle(
        self, delivery: Delivery, outcome: Outcome, error: Exception | None = None
    ) -> Settlement:
        if isinstance(outcome, Dead) and error is None:
            self.tracing.not_processed(delivery, outcome.reason)
        self._log.settled(delivery, outcome, error)
        return delivery, outcome


@asynccontextmanager
async def _limited(most: float, problem: str) -> AsyncIterator[None]:
    """Cancel what takes longer than so many seconds, and raise a TimeoutError that says so."""
    try:
        async with asyncio.timeout(most) as limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise TimeoutError(f"{problem} {most:g} s") from error
        raise


def _ways(subscription: str, group: Sequence[_Readable], ids: Sequence[str]) -> dict[str, Way]:
    """How each id is counted as handled: of two messages with the same one, as the first."""
    ways = [way_of("handled", delivery.envelope, subscription) for delivery, _ in group]
    return dict(zip(reversed(ids), reversed(ways), strict=True))


def _uncounted(
    ways: Mapping[str, Way], handled: Collection[str], claim: inbox.Claim
) -> dict[Way, int]:
    """What is still to be counted where these were handled. It is less than nothing for those that
    the claim has counted and that were left, because the time of their group was over."""
    numbers = Counter(ways[each] for each in handled)
    numbers.subtract(claim.counted)
    return {way: number for way, number in numbers.items() if number}


def _refuse_other(claim: inbox.Claim, message_id: str, envelope: Envelope) -> None:
    """Reject for a message whose id the inbox has with other data: it is not a duplicate, and must
    not be lost as one."""
    if claim.is_other(message_id, inbox.digest_of(envelope)):
        raise Reject(
            f"the id {envelope.id!r} was already used for a message with other data, which has "
            f"taken effect: whoever publishes it must give each message an id of its own"
        )


def may_come_from_sharing(error: Exception) -> bool:
    """Whether a message's failure may be due to those before it in its transaction: a deadlock over
    rows that they locked, rows of theirs that its first query flushed, or a transaction that one of
    them broke, catching the error."""
    if isinstance(error, EventMeshError | LeakedCancellation) and not isinstance(error, Reject):
        return True
    return comes_from_database(error)


def next_group(readable: Sequence[_Readable], begun: int, size: int) -> Sequence[_Readable]:
    """The messages from `begun` on that may share a transaction; a suspect is alone."""
    group = readable[begun : begun + size]
    if len(group) > 1:
        for number, (delivery, _) in enumerate(group):
            if is_suspect(delivery):
                return group[: max(number, 1)]
    return group
