"""What must hold in every world, and after every move.

Each property has one function here, which returns what is wrong, for people, or None. `explore`
calls them; `tests/unit/saga/verify` holds a saga for each that breaks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from eventmesh.saga.draft import Transition, units_of
from eventmesh.saga.flow import Parallel, Part, Series, Step
from eventmesh.saga.record import Label, SagaRecord
from eventmesh.saga.verify.moves import Move, changes
from eventmesh.saga.verify.twin import Twin
from eventmesh.saga.verify.world import World, label_of


@dataclass(frozen=True, slots=True)
class Happened:
    """A move: the world before and after it, and what the saga did."""

    twin: Twin
    before: World
    move: Move
    after: World
    transition: Transition | None

    def undo_labels(self) -> Iterator[Label]:
        """The labels of the undo commands that the saga has sent."""
        sendings = () if self.transition is None else self.transition.sendings
        labels = (label_of(sending.label) for sending in sendings)
        return (label for label in labels if label.is_undo)


@dataclass(frozen=True, slots=True)
class Property:
    """Something that is proved: a sentence, and the function that finds what contradicts it."""

    name: str
    sentence: str
    broken: Callable[[Happened], str | None]
    of_worlds: bool = False
    """Whether it looks at nothing but the world afterwards, which is checked once."""


def _undone_only_what_was_done(happened: Happened) -> str | None:
    for label in happened.undo_labels():
        around = happened.after.of(label.unit)
        unit = happened.before.record.units.get(label.unit)
        step = happened.twin.definition.steps[label.step]
        if around.effect != "none":
            continue
        if unit is None or not around.commands:
            return f"{label.unit} is undone, but it was never sent"
        if step.undoing is not None and step.undoing.needs_reply:
            return (
                f"{label.unit} is undone, but it was not done, and its undo does not say that it "
                f"accepts this"
            )
        # Before an undo is sent again, and while something is held, nobody looks at refusals.
        is_first = label.attempt == 1 and not happened.before.record.held
        refusals = [sent.fate == "refused" and not sent.reply_due for sent in around.commands]
        if is_first and all(refusals):
            return f"{label.unit} is undone, but its participant has refused every command"
    return None


def _undone_in_reverse_order(happened: Happened) -> str | None:
    definition, record = happened.twin.definition, happened.after.record
    if happened.before.record.held:
        return None  # many things happen in one transition, among them late answers
    for label in happened.undo_labels():
        if label.attempt > 1:
            continue  # sent again, or late: what follows it may have been late, too
        for step in _steps_after(definition.flow, label.step):
            for name in units_of(step, record.units):
                unit = record.units.get(name)
                if unit is None:
                    continue
                if unit.status in ("sent", "undo_sent"):
                    return f"{label.unit} is undone while {name}, which follows it, is not settled"
                if unit.status == "done" and step.undoing is not None:
                    return f"{label.unit} is undone before {name}, which follows it"
    return None


def _nothing_left_behind(happened: Happened) -> str | None:
    world = happened.after
    if world.record.status != "undone" or not world.is_quiescent:
        return None
    for step, name, around in _units(happened.twin, world):
        if around.effect == "done" and not step.no_undo and not around.is_excused:
            return f"the saga is undone, and what {name} has done is left behind"
    return None


def _completed_when_all_is_done(happened: Happened) -> str | None:
    world, record = happened.after, happened.after.record
    if record.status != "completed" or happened.before.record.status == "completed":
        return None
    for step in happened.twin.definition.steps.values():
        if step.name not in record.units:
            return f"the saga is completed, and {step.name} has not begun"
        for name in units_of(step, record.units):
            unit = record.units.get(name)
            if unit is None or unit.status not in ("done", "skipped"):
                return f"the saga is completed, and {name} is not done"
            was_done = step.command is None or world.of(name).effect == "done"
            if unit.status == "done" and not was_done:
                return f"the saga is completed, and no participant has done {name}"
    return None


def _forward_after_pivot(happened: Happened) -> str | None:
    before, after = happened.before.record, happened.after.record
    pivots = [step for step in happened.twin.definition.steps.values() if step.is_pivot]
    if not pivots or before.status == "cancelled":
        return None
    [pivot] = pivots
    unit = before.units.get(pivot.name)
    if unit is None or unit.status not in ("done", "skipped") or _is_taken_back(before):
        return None
    for label in happened.undo_labels():
        return f"{label.unit} is undone after the pivot {pivot.name}"
    if after.status in ("undoing", "undone"):
        return f"the saga is {after.status} after the pivot {pivot.name}"
    return None


def _is_taken_back(record: SagaRecord) -> bool:
    """Whether a saga is undone already: a pivot that was done late parks it."""
    before = record.parking.before if record.parking else record.status
    return before in ("undoing", "undone")


def _waits_have_an_end(happened: Happened) -> str | None:
    world, record = happened.after, happened.after.record
    if record.ended or (record.parking is not None and record.parking.unit is None):
        return None
    for step in happened.twin.definition.steps.values():
        for name in units_of(step, record.units):
            unit = record.units.get(name)
            if unit is None or unit.status not in ("sent", "undo_sent"):
                continue
            if record.parking is not None:
                continue  # an operator goes on with it
            is_undo = unit.status == "undo_sent"
            if not is_undo and step.timeout is None:
                continue
            label = label_of(name)
            attempt = unit.undo_attempt if is_undo else unit.attempt
            text = str(Label(label.step, label.item, is_undo, attempt))
            if text not in world.of(name).timers:
                return f"the saga waits for {text}, and no time-out is set for it"
    return None


def _quiescent_states_are_ends(happened: Happened) -> str | None:
    world, record = happened.after, happened.after.record
    if record.status == "parked" or record.ended or not world.is_quiescent:
        return None
    if waits_for_ever(happened.twin, record):
        return None
    return f"the saga is {record.status}, and nothing is under way that could change it"


def waits_for_ever(twin: Twin, record: SagaRecord) -> list[str]:
    """The steps that wait for an event from outside, and whose author has said that they may wait
    for ever."""
    steps = twin.definition.steps.values()
    return [
        step.name
        for step in steps
        if step.command is None
        and step.timeout is None
        and step.name in record.units
        and record.units[step.name].status == "sent"
    ]


def _parked_for_a_reason(happened: Happened) -> str | None:
    record = happened.after.record
    if record.status == "parked" and (record.parking is None or not record.parking.reason):
        return "the saga is parked, and nothing says why"
    if record.status != "parked" and record.parking is not None:
        return f"the saga is {record.status}, and the reason for which it was parked is still there"
    return None


def _retry_goes_on(happened: Happened) -> str | None:
    move, transition = happened.move, happened.transition
    if move.kind != "operator" or move.detail != "retry" or move.is_failing:
        return None
    is_parked = happened.before.record.parking is not None
    if is_parked and transition is not None and not changes(transition):
        return "an operator's retry of a parked saga changes nothing"
    return None


def _announced_once(happened: Happened) -> str | None:
    world = happened.after
    if world.announced > 1:
        return f"the end of the saga is announced {world.announced} times"
    if world.record.status in ("completed", "undone") and world.announced == 0:
        return f"the saga is {world.record.status}, and its end was never announced"
    is_announced = happened.transition is not None and happened.transition.ending is not None
    # What was held is applied in one transition: a late answer in it may open an undone saga again.
    was_held = bool(happened.before.record.held)
    if is_announced and not was_held and world.record.status not in ("completed", "undone"):
        return f"the end of the saga is announced, and it is {world.record.status}"
    return None


def _ends_stay(happened: Happened) -> str | None:
    before, after = happened.before.record, happened.after.record
    if happened.move.kind == "started":
        return None
    if before.status in ("completed", "cancelled") and after.status != before.status:
        return f"the saga was {before.status}, and is {after.status} now"
    if before.status == "cancelled" and happened.transition is not None:
        for sending in happened.transition.sendings:
            return f"the saga is cancelled, and sends {sending.label}"
    return None


def _withdrawn_when_not_needed(happened: Happened) -> str | None:
    record = happened.after.record
    for step, name, around in _units(happened.twin, happened.after):
        unit = record.units.get(name)
        waits = unit is not None and unit.status == "sent" and record.status != "cancelled"
        for number, sent in enumerate(around.commands, 1):
            if sent.fate == "delayed" and not (waits and unit and unit.attempt == number):
                return f"{name}, attempt {number}, is still to be sent, and nobody waits for it"
        is_silent = step.undoing is not None and step.undoing.ok is None
        open_undo = "undone" if is_silent else "undo_sent"
        waits = unit is not None and unit.status == open_undo and record.status != "cancelled"
        for number, sent in enumerate(around.undos, 1):
            if sent.fate == "delayed" and not (waits and unit and unit.undo_attempt == number):
                return (
                    f"the undo of {name}, attempt {number}, is still to be sent, and nobody waits "
                    f"for it"
                )
    return None


def _never(_: Happened) -> str | None:
    return None  # it shows as an error of the transition


ANSWERS_ARE_TAKEN = Property(
    "answers are taken", "no answer, time-out or dead letter of its own is rejected", _never
)
NO_ERROR = Property("no error", "the transition raises no error", _never)
UNDONE_ONLY_WHAT_WAS_DONE = Property(
    "undone only what was done",
    "nothing is undone that was not done, unless its undo accepts that after a time-out",
    _undone_only_what_was_done,
)

RETRY_GOES_ON = Property(
    "retry goes on", "an operator's retry lets a parked saga go on", _retry_goes_on
)

PROPERTIES = (
    Property("ends stay", "a completed or cancelled saga stays as it is", _ends_stay),
    Property(
        "ends",
        "where nothing is under way, the saga is completed, undone, cancelled or parked",
        _quiescent_states_are_ends,
        of_worlds=True,
    ),
    Property(
        "parked with a reason",
        "a parked saga says why",
        _parked_for_a_reason,
        of_worlds=True,
    ),
    RETRY_GOES_ON,
    UNDONE_ONLY_WHAT_WAS_DONE,
    Property(
        "undone in reverse",
        "a step is undone after the steps that followed it",
        _undone_in_reverse_order,
    ),
    Property(
        "nothing left behind",
        "an undone saga leaves nothing behind that was done",
        _nothing_left_behind,
        of_worlds=True,
    ),
    Property(
        "completed when done",
        "a completed saga has done all its steps",
        _completed_when_all_is_done,
    ),
    Property("forward after the pivot", "after the pivot nothing is undone", _forward_after_pivot),
    Property(
        "waits end",
        "every wait has a time-out, or says None",
        _waits_have_an_end,
        of_worlds=True,
    ),
    Property(
        "withdrawn when not needed",
        "no command that is to be sent again after a delay outlasts what it is for",
        _withdrawn_when_not_needed,
        of_worlds=True,
    ),
    Property("announced once", "the end is announced exactly once", _announced_once),
    ANSWERS_ARE_TAKEN,
    NO_ERROR,
)


def _units(twin: Twin, world: World) -> Iterator[tuple[Step[Any, Any], str, Any]]:
    for step in twin.definition.steps.values():
        for name in units_of(step, world.record.units):
            if name in world.units:
                yield step, name, world.units[name]


def _steps_after(part: Part[Any], name: str) -> list[Step[Any, Any]]:
    """The steps that can begin only when this one is done."""
    match part:
        case Series(parts):
            for number, each in enumerate(parts):
                if name in {step.name for step in each.steps()}:
                    later = [step for after in parts[number + 1 :] for step in after.steps()]
                    return [*_steps_after(each, name), *later]
        case Parallel(parts):
            for each in parts:
                if name in {step.name for step in each.steps()}:
                    return _steps_after(each, name)
    return []
