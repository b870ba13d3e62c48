"""The dead letters of a subscription: what they are, what they mean, and what operators do to them.

Replaying and discarding work on the ids that somebody has seen, never on a condition: what was
dead-lettered since then stays. Of two who replay the same dead letter at once, one does, because
the broker takes it away in the same step; the other finds that it is not there any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from eventmesh.errors import UnreadableMessage, UsageError
from eventmesh.operations.reach import Reach
from eventmesh.persistence import counts, inbox
from eventmesh.persistence.database import Database
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.reading import Undecided
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.concerned import ConcernedSaga, concerned_saga
from eventmesh.transports.base import DeadLetter
from eventmesh.wire.envelope import check_envelope, check_size, open_envelope

MOST_LETTERS = 10_000
"""How many dead letters of a subscription are listed."""

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
        letters = await transport.dead_letters(handler.subscription, limit=limit)
    return LetterListing(
        service.name,
        handler.subscription.name,
        taken_at,
        tuple(_summary(letter, service, handler) for letter in letters),
        len(letters) >= limit,
    )


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
    """One of the oldest dead letters, completely; None if it is not there any more."""
    async with reach.broker(ACTING_TIMEOUT) as transport:
        letters = await transport.dead_letters(handler.subscription, limit=MOST_LETTERS)
    return next((letter for letter in letters if letter.id == letter_id), None)


async def act_on_letters(
    reach: Reach, handler: Handler, deed: Deed, ids: Sequence[str]
) -> Sequence[str]:
    """Replay or discard those of these dead letters that are still there; returns their ids. What
    is discarded is counted, for an audit, in the service's database; Unreachable also if that does
    not answer then."""
    async with reach.broker(ACTING_TIMEOUT) as transport:
        if deed == "replay":
            return await transport.replay(handler.subscription, ids)
        letters = await transport.dead_letters(handler.subscription, limit=MOST_LETTERS)
        gone = set(await transport.discard(handler.subscription, ids))
    name = handler.subscription.name
    discarded = [letter for letter in letters if letter.id in gone]
    for place in reach.databases:
        if handler.transactional and discarded and name.partition(".")[0] in place.services:
            async with reach.database(place) as database:
                await count_discarded(database, name, discarded)
    return sorted(gone)


async def count_discarded(
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
        case "command":
            return (
                f"{saga} was notified of this dead letter: if it has gone on without the step, a "
                f"success now is a late answer, and is undone"
            )
        case "start":
            return f"{saga} is started now"
        case "answer" | "time-out":
            return f"{saga} receives it now"


def after_discard(saga: ConcernedSaga) -> str:
    """What discarding means to the saga that the dead letter concerns."""
    match saga.role:
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
