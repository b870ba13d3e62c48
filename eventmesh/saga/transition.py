"""What happens next in a saga: a pure function of its record and what has happened.

`start` and `advance` read a definition and a record and return the next record, together with the
commands to send and the time-outs to set. They touch no clock, no database and no broker, so every
path through a saga can be walked in a test; `verify` walks all of them. For `reserve >> capture`:

    happens              record afterwards                   commands to send
    (start)              running: reserve sent               reserve
    reserve ok           running: reserve done, capture sent capture
    capture failed       undoing: reserve undo_sent          reserve:undo
    reserve:undo ok      undone: reserve undone              none, and the end is published

Answers come late, twice, or not at all. Each case has one rule:

| what comes                                  | rule                                               |
|---------------------------------------------|----------------------------------------------------|
| ok of the open attempt, or of an earlier one| the step is done                                   |
| ok of a step that counts as failed          | late: it was done after all, so it is undone, too  |
| ok of a step whose undo has given up        | late: the saga is no longer parked for it, and it  |
|                                             | is undone again                                    |
| ok of another attempt, after the undo       | late: it may have been done after that: undone too |
| ok of such a step that nothing can undo     | late: the saga is parked for an operator           |
| ok or failed, once the step is answered     | a duplicate: nothing changes                       |
| failed, time-out, dead letter               | sent again while `retry` allows; else the saga is  |
|                                             | undone; after the pivot sent again, then parked    |
| … of an attempt before the open one         | stale: nothing changes                             |
| time-out of the pivot                       | parked: nobody knows whether it was done           |
| time-out or dead letter of an undo          | sent again while its `retry` allows, then parked   |
| … of an undo that needs the reply now, and  | waits for the late answer, as after a time-out     |
| older code has sent it without one          |                                                    |
| an event that answers another step          | not an answer: nothing changes                     |
| an answer of a step that was never sent     | UnexpectedAnswer: a dead letter                    |
| an answer of a step that is not in the code | UnknownStep: retried, then a dead letter           |
| an event by key, before its step has begun  | kept for it                                        |
| a step that newer code has before a pivot   | skipped: it could fail after the point of no       |
| which has begun                             | return                                             |
| a parent's next attempt to start a child    | asked again: its end answers the newest attempt    |
| saga that is open, and found by its key     |                                                    |
| anything for a saga that is parked by an    | kept, and applied when an operator retries         |
| error of its code                           |                                                    |
"""

from __future__ import annotations

from dataclasses import replace

from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.saga.definition import Definition
from eventmesh.saga.draft import Draft, Transition, delayed_label, open_label
from eventmesh.saga.happening import FunctionFailed, Happening, OperatorAction, hold_as
from eventmesh.saga.record import Parking, SagaRecord, parse_label
from eventmesh.storable import storable


def start(
    definition: Definition,
    message: Message,
    *,
    now: float = 0.0,
    parent: tuple[str, str] | None = None,
    correlation: str = "",
) -> Transition:
    """Begin a saga with its first steps. `now` is in seconds since 1970, and only used for the
    deadlines that people see. Raises as `begin`."""
    return take_first_steps(
        definition, begin(definition, message, parent=parent, correlation=correlation), now=now
    )


def begin(
    definition: Definition,
    message: Message,
    *,
    parent: tuple[str, str] | None = None,
    correlation: str = "",
) -> SagaRecord:
    """The record of a saga that has not taken a step. Raises what the function of the author
    raises."""
    state = definition.starts[type(message)](message)
    if not isinstance(state, definition.state):
        raise UsageError(
            f"The saga {definition.name}: the function that {type(message).__name__} starts "
            f"returned {type(state).__name__} in the place of {definition.state.__name__}."
        )
    return SagaRecord("running", state, parent=parent, correlation=correlation)


def take_first_steps(definition: Definition, record: SagaRecord, *, now: float = 0.0) -> Transition:
    """Begin the first steps. A function of the author that raises parks the saga."""
    draft = Draft(definition, record, now)
    try:
        draft.go_on()
    except FunctionFailed as error:
        return park(record, str(error))
    return draft.transition("started")


def advance(
    definition: Definition, record: SagaRecord, happening: Happening, *, now: float = 0.0
) -> Transition:
    """Apply what has happened. A function of the author that raises parks the saga, with what has
    happened held for later. Raises UnexpectedAnswer or UnknownStep; UsageError for an operator's
    action that is not possible."""
    if isinstance(happening, OperatorAction):
        return _operate(definition, record, happening, now)
    if record.parking is not None and record.parking.unit is None:
        return hold(record, happening)
    draft = Draft(definition, record, now)
    try:
        rule = draft.apply(happening)
    except FunctionFailed as error:
        return park(record, str(error), happening)
    return draft.transition(rule)


def ask_again(record: SagaRecord, parent: tuple[str, str]) -> Transition | None:
    """What the parent of an open child saga has asked for by another attempt of the same step: it
    is under way, and its end answers the newest attempt, as a failure of an earlier one would be
    stale. None where another saga, or another step, asks."""
    asked, again = (parse_label(label) for _, label in (record.parent or ("", ""), parent))
    if record.parent is None or record.parent[0] != parent[0] or asked is None or again is None:
        return None
    if replace(asked, attempt=again.attempt) != again:
        return None
    is_newer = again.attempt > asked.attempt
    asked_for = replace(record, parent=parent) if is_newer else record
    return Transition(asked_for, "asked again", has_changed=is_newer)


def park(record: SagaRecord, reason: str, happening: Happening | None = None) -> Transition:
    """Park a saga because of an error in its code; what has happened is held for later."""
    before = record.parking.before if record.parking else record.status
    parked = replace(record, status="parked", parking=Parking(before, storable(reason)))
    if happening is not None:
        parked = replace(parked, held=(*parked.held, hold_as(happening)))
    return Transition(parked, "parked")


def hold(record: SagaRecord, happening: Happening) -> Transition:
    """Keep what has happened until an operator lets the saga go on."""
    return Transition(replace(record, held=(*record.held, hold_as(happening))), "held")


def cancel(record: SagaRecord) -> Transition:
    """End a saga as it is, whatever its definition is; UsageError where it has ended."""
    _refuse_ended(record)
    return Transition(
        replace(
            record,
            status="cancelled",
            units={name: replace(unit, deadline=None) for name, unit in record.units.items()},
            parking=None,
            early={},
            held=(),
        ),
        "cancelled by an operator",
        cancelled=tuple(
            str(open_label(name, unit))
            for name, unit in record.units.items()
            if unit.deadline is not None
        ),
        withdrawn=tuple(
            str(label)
            for name, unit in record.units.items()
            if (label := delayed_label(name, unit)) is not None
        ),
    )


def _refuse_ended(record: SagaRecord) -> None:
    if record.ended:
        raise UsageError(f"the saga has ended: it is {record.status}.")


def _refuse_missing_steps(definition: Definition, record: SagaRecord) -> None:
    """UsageError where the saga waits for a step that this code does not have: it would begin the
    same step under its new name, beside the one that waits."""
    parked_for = record.parking.unit if record.parking else None
    for text in [*record.waiting, *([parked_for] if parked_for else [])]:
        label = parse_label(text)
        if label is None or label.step not in definition.steps:
            raise UsageError(
                f"the saga waits for {text}, and this code has no such step: deploy code that has "
                f"it, under this name; or cancel the saga."
            )


def _operate(
    definition: Definition, record: SagaRecord, action: OperatorAction, now: float
) -> Transition:
    """An operator's action; UsageError where it is not possible."""
    if action.operation == "cancel":
        return cancel(record)
    _refuse_ended(record)
    if record.parking is not None and record.parking.unit is None and action.operation != "retry":
        raise UsageError(
            f"the saga is parked by an error of its code ({record.parking.reason}): correct it, "
            f"deploy, and retry; or cancel the saga."
        )
    _refuse_missing_steps(definition, record)
    draft = Draft(definition, record, now)
    try:
        match action.operation:
            case "retry":
                draft.retry(action.step)
            case "skip":
                draft.skip(action.step)
            case "undo":
                draft.undo_all(action.reason)
    except FunctionFailed as error:
        parked = park(record, str(error))
        return replace(parked, rule="parked again")
    return draft.transition(f"{action.operation} by an operator")
