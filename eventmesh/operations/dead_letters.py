"""The dead letters of a subscription: what they are, what they mean, and what operators do to them.

Replaying and discarding work on the ids that somebody has seen, never on a condition: what was
dead-lettered since then stays. Of two who replay the same dead letter at once, one does, because
the broker takes it away in the same step; the other finds that it is not there any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from eventmesh.errors import EventMeshError, Unreachable, UnreadableMessage, UsageError
from eventmesh.operations.action_log import LOGGED_IDS, Action
from eventmesh.operations.reach import Reach
from eventmesh.persistence import counts, inbox
from eventmesh.persistence.database import Database
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.reading import Undecided
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.concerned import ConcernedSaga, concerned_saga
from eventmesh.transports.base import DeadLetter, Subscription
from eventmesh.wire.envelope import check_envelope, check_size, open_envelope

MOST_LETTERS = 10_000
"""How many dead letters of a subscription are listed."""

MOST_BYTES = 64 * 1024 * 1024
"""How much data they have together: a list is read completely before its data are forgotten."""

AT_ONCE = 1_000
"""How many are replayed or discarded in one request to the broker."""

ACTING_TIMEOUT = 120.0
"""Seconds for one such request: brokers look through all dead letters of the subscription."""


_MOST_REASON = 500

Deed = Literal["replay", "discard"]


@dataclass(frozen=True, slots=True)
class LetterSummary:
    """A dead letter without its data. `error` is the last line of the traceback, if there is
    one."""

    id: str
    name: str
    key: str | None
    message_id: str
    reason: str
    error: str
    attempts: int
    died_at: datetime
    size: int
    saga: ConcernedSaga | None


@dataclass(frozen=True, slots=True)
class LetterListing:
    """The dead letters of a subscription, oldest first, as they were at a time; `is_cut` if there
    may be more."""

    service: str
    subscription: str
    taken_at: datetime
    letters: tuple[LetterSummary, ...]
    is_cut: bool


async def list_letters(
    reach: Reach, service: Service, handler: Handler, limit: int = MOST_LETTERS
) -> LetterListing:
    """The oldest dead letters; Unreachable."""
    taken_at = reach.clock.now()
    async with reach.broker(ACTING_TIMEOUT) as transport:
        letters = await transport.dead_letters(
            handler.subscription, limit=limit, most_bytes=MOST_BYTES
        )
    return LetterListing(
        service.name,
        handler.subscription.name,
        taken_at,
        tuple(_summary(letter, service, handler) for letter in letters),
        is_cut(letters, limit),
    )


def is_cut(letters: Sequence[DeadLetter], limit: int) -> bool:
    """Whether a list with this limit, and of MOST_BYTES, may have ended before all."""
    size = sum(len(letter.envelope.data) for letter in letters)
    return len(letters) >= limit or size >= MOST_BYTES


def _summary(letter: DeadLetter, service: Service, handler: Handler) -> LetterSummary:
    envelope = letter.envelope
    lines = letter.error.strip().splitlines()
    return LetterSummary(
        letter.id,
        envelope.name,
        envelope.key,
        envelope.id,
        letter.reason[:_MOST_REASON],
        lines[-1][:_MOST_REASON] if lines else "",
        letter.attempts,
        letter.died_at,
        len(envelope.data),
        concerned_saga(envelope, handler, service),
    )


async def find_letter(reach: Reach, handler: Handler, letter_id: str) -> DeadLetter | None:
    """A dead letter, completely; None if it is not there any more."""
    async with reach.broker(ACTING_TIMEOUT) as transport:
        letters = await transport.dead_letters(handler.subscription, limit=1, only=[letter_id])
    return letters[0] if letters else None


async def choose_letters(
    reach: Reach, subscription: Subscription, ids: Sequence[str] | None
) -> AsyncIterator[Sequence[DeadLetter]]:
    """The dead letters with these ids, or all that there are now, in batches: the next is read once
    the caller has acted on the one before, so that what is replayed and dies again is not acted on
    twice: it is younger than all others. Only if there are copies of a message, which are acted on
    as one, may as many that die meanwhile be among them."""
    if ids:
        async with reach.broker(ACTING_TIMEOUT) as transport:
            found = await transport.dead_letters(subscription, limit=len(ids), only=ids)
        if found:
            yield found
        return
    async with reach.broker() as transport:
        left = (await transport.stats(subscription)).dead
    seen = set[str]()
    while left > 0:
        async with reach.broker(ACTING_TIMEOUT) as transport:
            found = await transport.dead_letters(
                subscription, limit=min(left, AT_ONCE), most_bytes=MOST_BYTES
            )
        new = [letter for letter in found if letter.id not in seen]
        if not new:
            return
        yield new
        seen.update(letter.id for letter in new)
        left -= len(new)


def action_on_letters(
    subscription: str, deed: Deed, who: str, reason: str, ids: Sequence[str] | None
) -> Action:
    """What is recorded of an action on the dead letters with these ids, or on all."""
    details: dict[str, Any] = {"all": True}
    if ids is not None:
        details = {"number": len(ids), "ids": list(ids[:LOGGED_IDS])}
    service = subscription.partition(".")[0]
    return Action(service, who, f"{deed} dead letters", subscription, reason, details)


async def act_on_letters(
    reach: Reach, handler: Handler, deed: Deed, ids: Sequence[str]
) -> Sequence[str]:
    """Replay or discard those of these dead letters that are still there; returns their ids."""
    if deed == "replay":
        return await replay_letters(reach, handler, ids)
    async with reach.broker(ACTING_TIMEOUT) as transport:
        letters = await transport.dead_letters(handler.subscription, limit=len(ids), only=ids)
    return await discard_letters(reach, handler, letters)


async def replay_letters(reach: Reach, handler: Handler, ids: Sequence[str]) -> Sequence[str]:
    """Replay those of these dead letters that are still there; returns their ids. Unreachable."""
    async with reach.broker(ACTING_TIMEOUT) as transport:
        return await transport.replay(handler.subscription, ids)


async def discard_letters(
    reach: Reach, handler: Handler, letters: Sequence[DeadLetter]
) -> Sequence[str]:
    """Discard those of these dead letters that are still there, and count them, for an audit, in
    the service's database; returns their ids. Unreachable also if that does not answer then."""
    name = handler.subscription.name
    async with reach.broker(ACTING_TIMEOUT) as transport:
        gone = set(await transport.discard(handler.subscription, [each.id for each in letters]))
    discarded = [letter for letter in letters if letter.id in gone]
    place = reach.place_of(name.partition(".")[0])
    if place is not None and handler.transactional and discarded:
        try:
            async with reach.database(place) as database:
                await _count_discarded(database, name, discarded)
        except EventMeshError as error:
            raise Unreachable(
                f"{len(discarded):,} dead letter(s) of {name} are discarded, but could not be "
                f"counted as such, so `eventmesh audit` will miss them. {error}"
            ) from error
    return sorted(gone)


async def _count_discarded(
    database: Database, subscription: str, letters: Collection[DeadLetter]
) -> None:
    """Count dead letters that were discarded, but for those whose message has taken effect."""
    async with database.connection() as connection:
        ids = [letter.envelope.unique_id for letter in letters]
        handled = await inbox.remembered(connection, subscription, ids)
        discarded = Counter(
            counts.way_of("discarded", letter.envelope, subscription)
            for letter in letters
            if letter.envelope.unique_id not in handled
        )
        await counts.add_now(connection, discarded)


async def replay_edited(
    reach: Reach, service: Service, handler: Handler, letter: DeadLetter, data: bytes
) -> bool:
    """Deliver a dead letter's message with other data; False if the letter is not there any more.

    UnreadableMessage, with the reason, for data that the handler's model does not accept;
    MessageTooLarge. Nothing was replayed then.
    """
    envelope = replace(letter.envelope, data=data)
    check_envelope(envelope)
    model = handler.models.get(envelope.name)
    if model is None:
        raise UnreadableMessage(
            f"{handler.subscription.name} does not handle {envelope.name}, whatever its data is."
        )
    check_size(envelope, reach.settings.max_message_bytes)
    readings = service.readings
    while True:
        try:
            open_envelope(envelope, model, readings.judge)
            break
        except Undecided as question:
            await readings.look_up(question)
    async with reach.broker(ACTING_TIMEOUT) as transport:
        done = await transport.replay(handler.subscription, [letter.id], {letter.id: data})
    return letter.id in done


def one_that_is_there(letter: DeadLetter | None, service: str, letter_id: str) -> DeadLetter:
    """The dead letter; UsageError if there is none."""
    if letter is None:
        raise UsageError(
            f"{service} has no dead letter {letter_id}: it was replayed or discarded, or never "
            f"existed."
        )
    return letter


def effect_on(saga: ConcernedSaga) -> str:
    """What a dead letter means to the saga that it concerns."""
    match saga.role:
        case "command":
            return "it was notified of this dead letter"
        case "start":
            return "it was not started"
        case "answer":
            return "it has not received this, and may wait until its time-out"
        case "time-out":
            return "it does not time out, and may wait until an operator retries it"


def after_replay(saga: ConcernedSaga) -> str:
    """What replaying means to the saga that the dead letter concerns."""
    match saga.role:
        case "command" if saga.is_undo:
            return (
                f"{saga} was notified of this dead letter: a success now counts as the undo, if "
                f"that is still waited for"
            )
        case "command":
            return (
                f"{saga} was notified of this dead letter: if it has gone on without the step, a "
                f"success now is a late answer: the step is undone, or the saga is parked where "
                f"nothing undoes it"
            )
        case "start":
            return f"{saga} is started now"
        case "answer" | "time-out":
            return f"{saga} receives it now"


def after_discard(saga: ConcernedSaga) -> str:
    """What discarding means to the saga that the dead letter concerns."""
    match saga.role:
        case "command" if saga.is_undo:
            return (
                f"{saga} was notified of this dead letter: it has sent the undo again, or is parked"
            )
        case "command":
            return (
                f"{saga} was notified of this dead letter: it has sent the command again, is "
                f"undone, or is parked"
            )
        case "start":
            return f"{saga} is not started by it"
        case "answer":
            return f"Warning: {saga} never receives it, and may wait until its time-out"
        case "time-out":
            return f"Warning: {saga} does not time out, and may wait until an operator retries it"
