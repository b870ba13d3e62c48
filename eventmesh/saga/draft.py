"""The next record of a saga, while a transition makes it: see `transition` for the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.duration import exact_span
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.retry import summarize
from eventmesh.saga.definition import Definition
from eventmesh.saga.failures import DeadLettered, TimedOut, UndoRequested
from eventmesh.saga.flow import UNTIL_PARKED, Parallel, Part, Series, Step, Undo
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    FunctionFailed,
    Happening,
    OperatorAction,
    UnexpectedAnswer,
    UnknownStep,
    WaitedTooLong,
    read_held,
    read_kept,
)
from eventmesh.saga.record import (
    Label,
    Parking,
    SagaRecord,
    Status,
    Stored,
    UnitRecord,
    parse_label,
    stored,
)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Sending:
    """A command to send after `delay` seconds, and the label that its answer will carry."""

    label: str
    command: Command
    delay: float = 0.0


@dataclass(frozen=True, slots=True)
class Transition:
    """The next record, and what is sent, set and published in the same transaction.

    `timers` are the time-outs to set: seconds by label. `cancelled` are labels whose time-outs are
    not needed any more, and `withdrawn` those of delayed commands that must not be sent any more.
    `rule` is what was decided, in the words of the table above; `has_changed`
    is false where nothing needs to be stored. `taken_for` is the step that an event without labels
    is taken to answer, or that an operator skips.
    """

    record: SagaRecord
    rule: str
    sendings: tuple[Sending, ...] = ()
    timers: Mapping[str, float] = field(default_factory=dict)
    cancelled: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    ending: Message | None = None
    has_changed: bool = True
    taken_for: Label | None = None


_SETTLED = ("done", "skipped")


def units_of(step: Step[Any, Any], units: Mapping[str, UnitRecord]) -> Sequence[str]:
    """The names of the units of a step that has begun."""
    if step.each is None:
        return (step.name,)
    begun = units.get(step.name)
    return () if begun is None else tuple(f"{step.name}[{n}]" for n in range(begun.items or 0))


def open_label(name: str, unit: UnitRecord) -> Label:
    """The label of the newest command of this unit."""
    is_undo = unit.status == "undo_sent"
    attempt = unit.undo_attempt if is_undo else unit.attempt
    return Label(name.partition("[")[0], _item_of(name), is_undo, attempt)


def delayed_label(name: str, unit: UnitRecord) -> Label | None:
    """The label of the command of this unit that may still wait for its delay. Only what a `retry=`
    sends again has one, so there is none for the first try."""
    if unit.tries == 1:
        return None
    step, item = name.partition("[")[0], _item_of(name)
    if unit.status == "sent":
        return Label(step, item, attempt=unit.attempt)
    if unit.status in ("undo_sent", "undone") and unit.undo_attempt > 0:
        return Label(step, item, is_undo=True, attempt=unit.undo_attempt)
    return None


class Draft:
    """The record that a transition makes, while it is made."""

    def __init__(self, definition: Definition, record: SagaRecord, now: float) -> None:
        self._definition = definition
        self._before = record
        self._now = now
        self._status: Status = record.status
        self._state = record.state
        self._units = dict(record.units)
        self._failure = record.failure
        self._parking = record.parking
        self._early = dict(record.early)
        self._held = record.held
        self._has_announced = record.has_announced
        self._sendings: list[Sending] = []
        self._timers: dict[str, float] = {}
        self._cancelled: list[str] = []
        self._withdrawn: list[str] = []
        self._ending: Message | None = None
        self._taken_for: Label | None = None

    def transition(self, rule: str) -> Transition:
        record = replace(
            self._before,
            status=self._status,
            state=self._state,
            units=self._units,
            failure=self._failure,
            parking=self._parking,
            early=self._early,
            held=self._held,
            has_announced=self._has_announced,
        )
        return Transition(
            record,
            rule,
            tuple(self._sendings),
            self._timers,
            tuple(self._cancelled),
            tuple(self._withdrawn),
            self._ending,
            has_changed=record != self._before,
            taken_for=self._taken_for,
        )

    # What has happened

    def apply(self, happening: Happening) -> str:
        """Apply an answer, a time-out or a dead letter; returns the rule that it went by."""
        if self._status == "cancelled":
            return "too late"
        if isinstance(happening, Answered) and happening.label is None:
            return self._apply_correlated(happening.event)
        assert not isinstance(happening, OperatorAction)  # noqa: S101  # see `_operate`
        label = parse_label(happening.label or "")
        if label is None:
            raise UnexpectedAnswer("its sagastep is not the label of a step")
        step = self._definition.steps.get(label.step)
        if step is None:
            raise UnknownStep(
                f"the saga {self._definition.name} has no step {label.step} in this version of the "
                f"code"
            )
        unit = self._units.get(label.unit)
        sent = 0 if unit is None or unit.items is not None else unit.attempt
        if unit is None or label.attempt > (unit.undo_attempt if label.is_undo else sent):
            if isinstance(happening, Answered) and not _answers(step, label, happening.event):
                return "not an answer"
            raise UnexpectedAnswer(f"its saga has not sent {label}")
        if label.is_undo:
            return self._apply_to_undo(step, label, unit, happening)
        match happening:
            case Answered(event):
                return self._answer(step, label, unit, event)
            case WaitedTooLong():
                # None where an older version of the code has set the time-out.
                within = "in time" if step.timeout is None else f"within {exact_span(step.timeout)}"
                failure = Stored(
                    TimedOut.__name__, {"step": label.unit, "reason": f"no answer {within}"}
                )
                return self._fail(step, label, unit, "timed_out", failure)
            case CommandDeadLettered(reason=reason):
                failure = Stored(DeadLettered.__name__, {"step": label.unit, "reason": reason})
                return self._fail(step, label, unit, "dead_lettered", failure)
        raise AssertionError(happening)

    def _apply_correlated(self, event: Event) -> str:
        """An event that its key has led here: it answers the step that waits for it, or that is
        going to; or it is late for a step that counts as failed."""
        steps = list(self._definition.correlated(type(event)))
        begun = [(step, self._units[step.name]) for step in steps if step.name in self._units]
        waiting = [(step, unit) for step, unit in begun if unit.status == "sent"]
        before = self._parking.before if self._parking else self._status
        if not waiting and before == "running":
            for step in steps:
                if step.name not in self._units and step.name not in self._early:
                    self._early[step.name] = stored(event)
                    self._taken_for = Label(step.name)
                    return "early"
        missing = [
            (step, unit)
            for step, unit in begun
            if unit.status == "failed" or (unit.answer is None and unit.status not in _SETTLED)
        ]
        undone = [
            (step, unit)
            for step, unit in begun
            if unit.status in ("undo_sent", "undone") and unit.attempt > 1
        ]
        if not waiting and not missing and type(event) in {step.ok for step, _ in undone}:
            # Without a label, it may answer an attempt that was done after the undo of another.
            step, unit = undone[0]
            self._taken_for = Label(step.name, attempt=unit.attempt)
            return self._answer_late(step, self._taken_for, unit, event)
        for step, unit in (*waiting, *missing, *begun):
            self._taken_for = Label(step.name, attempt=unit.attempt)
            return self._answer(step, self._taken_for, unit, event)
        return "a duplicate" if before == "running" else "too late"

    def _answer(self, step: Step[Any, Any], label: Label, unit: UnitRecord, event: Event) -> str:
        is_ok = type(event) is step.ok
        if not is_ok and type(event) not in step.failed:
            return "not an answer"
        if unit.status == "done" or unit.answer is not None:
            # Another attempt may have been done after what undid this one.
            is_undone = unit.status in ("undo_sent", "undone") and label.attempt != unit.answered
            if is_ok and (unit.status == "failed" or is_undone):
                return self._answer_late(step, label, unit, event)
            return "a duplicate"
        if not is_ok:
            if unit.status == "sent":
                return self._fail(step, label, unit, "failed", stored(event))
            if unit.status != "timed_out" or label.attempt != unit.attempt:
                return "stale"
            if self._stands_still(step, unit):  # parked, because nobody knew
                self._unpark(label.unit)
                open_again = replace(unit, status="sent")
                return self._fail(step, label, open_again, "failed", stored(event))
            self._units[label.unit] = replace(unit, status="failed", answer=stored(event))
            return "late, and failed"
        if unit.status == "sent":
            if step.is_pivot and self._status == "undoing":
                # An operator wanted it undone, and nothing has been: the pivot was under way.
                self._status, self._failure = "running", None
            self._finish(step, label.unit, replace(unit, answered=label.attempt), event)
            self.go_on()
            return "applied"
        return self._answer_late(step, label, unit, event)

    def _answer_late(
        self, step: Step[Any, Any], label: Label, unit: UnitRecord, event: Event
    ) -> str:
        """A step that counted as failed was done after all."""
        self._withdraw(label.unit, unit)  # an undo of before this answer
        unit = replace(unit, answered=label.attempt)
        if self._status == "completed":
            return "too late"
        before = self._parking.before if self._parking else self._status
        if before == "running":  # parked, because nobody knew
            self._finish(step, label.unit, unit, event)
            self.go_on()
            return "applied"
        if step.undoing is None and step.command is not None and not step.no_undo:
            self._units[label.unit] = replace(unit, status="done", answer=stored(event))
            self._park(label.unit, f"{label.unit} was done after the saga had been undone")
            return "late: parked"
        if step.undoing is None:
            return "too late"
        self._units[label.unit] = replace(
            unit, status="done", answer=stored(event), void_undos=unit.undo_attempt
        )
        if self._status == "undone":
            self._status = "undoing"
        self._unpark(label.unit)  # its undo had failed too often, and may succeed now
        self.go_on()
        is_undone = self._units[label.unit].status != "done"
        return "late: undone" if is_undone else "late: to be undone"

    def _finish(
        self, step: Step[Any, Any], name: str, unit: UnitRecord, event: Event | None
    ) -> None:
        """A unit is done; with its answer folded into the state."""
        self._cancel_timer(name, unit)
        is_newest = event is not None and unit.answered == unit.attempt
        if not is_newest or step.correlate is not None:  # a key does not tell which attempt it was
            self._withdraw(name, unit)
        if event is not None and step.fold is not None:
            item = _item_of(name) if step.fold_takes_item else None
            items = () if item is None else (_item(step, self._state, item),)
            self._state = _returned(self._definition.state, step.fold, self._state, *items, event)
        answer = None if event is None else stored(event)
        status: Any = "skipped" if event is None else "done"
        self._units[name] = replace(unit, status=status, answer=answer, deadline=None)
        self._unpark(name)

    def _fail(
        self,
        step: Step[Any, Any],
        label: Label,
        unit: UnitRecord,
        status: Literal["failed", "timed_out", "dead_lettered"],
        failure: Stored,
    ) -> str:
        if unit.status != "sent" or label.attempt != unit.attempt:
            return "stale"
        name = label.unit
        self._cancel_timer(name, unit)
        if status == "failed" and step.correlate is not None:  # it may answer an earlier attempt
            self._withdraw(name, unit)
        only_forward = step.name in self._definition.after_pivot
        policy = step.retry or (UNTIL_PARKED if only_forward else None)
        going_on = self._status == "running" or (only_forward and self._status == "parked")
        if policy is not None and unit.tries < policy.attempts and going_on and step.command:
            delay = _called(policy.backoff, unit.tries)
            self._send(step, label.item, replace(unit, tries=unit.tries + 1), delay=delay)
            return "sent again"
        reason = failure.data.get("reason") or failure.name
        if only_forward or (step.is_pivot and status == "timed_out"):
            self._units[name] = replace(unit, deadline=None, status="timed_out")
            what = "must be done, but was not" if only_forward else "may have been done, or not"
            self._park(name, f"{name} {what}: {reason}")
            return "parked"
        answer = failure if status == "failed" else None
        self._units[name] = replace(unit, status=status, answer=answer, deadline=None)
        if self._status == "running":
            self._status = "undoing"
            self._failure = (name, failure)
        elif self._parking is not None and self._parking.before == "running":
            self._parking = replace(self._parking, before="undoing")
            self._failure = self._failure or (name, failure)
        self._early.clear()
        self.go_on()
        return "failed"

    def _apply_to_undo(
        self, step: Step[Any, Any], label: Label, unit: UnitRecord, happening: Happening
    ) -> str:
        undo, name = step.undoing, label.unit
        if undo is None:
            raise UnknownStep(
                f"the saga {self._definition.name} has no undo of {step.name} in this version of "
                f"the code"
            )
        if isinstance(happening, Answered):
            if type(happening.event) is not undo.ok:
                return "not an answer"
            if unit.status != "undo_sent":
                return "a duplicate"
            if label.attempt <= unit.void_undos:
                return "stale"
            self._cancel_timer(name, unit)
            if label.attempt != unit.undo_attempt:
                self._withdraw(name, unit)
            self._units[name] = replace(unit, status="undone", deadline=None)
            self._unpark(name)
            self.go_on()
            return "applied"
        is_open = unit.status == "undo_sent" or (undo.ok is None and unit.status == "undone")
        if not is_open or label.attempt != unit.undo_attempt:
            return "stale"
        self._cancel_timer(name, unit)
        if self._status == "undone":
            self._status = "undoing"
        if _lacks_reply(undo, unit):
            self._wait_for_reply(name, unit)
            self.go_on()
            return "to be undone when answered"
        if unit.tries < undo.retry.attempts:
            delay = _called(undo.retry.backoff, unit.tries)
            self._send_undo(step, label.item, replace(unit, tries=unit.tries + 1), delay=delay)
            self.go_on()  # nobody answers an undo without ok
            return "sent again"
        why = (
            happening.reason
            if isinstance(happening, CommandDeadLettered)
            else f"no answer within {exact_span(undo.timeout)}"
        )
        self._units[name] = replace(unit, status="undo_sent", deadline=None)
        self._park(name, f"the undo of {name} failed {unit.tries} times: {why}")
        return "parked"

    # What an operator does

    def retry(self, chosen: str | None) -> None:
        """Send again what waits, or the one unit that was chosen; go on if the saga was parked."""
        parking = self._parking
        if parking is not None:
            self._parking, self._status = None, parking.before
        held, self._held = self._held, ()
        if parking is not None and parking.unit is None:
            self.go_on()
            for kept in held:
                try:
                    self.apply(read_held(kept, self._definition))
                except UnexpectedAnswer:
                    continue  # it would have been a dead letter, had the saga not been parked
                except UnknownStep as error:
                    raise FunctionFailed(str(error)) from error
            again = self._standing_still()
        else:
            again = dict(self._waiting(chosen, parking))
        for name, step in again.items():
            before, unit = self._units[name], replace(self._units[name], tries=1)
            if unit.status == "undo_sent":
                if step.undoing is None:
                    raise UsageError(
                        f"this code has no undo of {step.name}: deploy code that has it, and "
                        f"retry; or skip it, once it is undone by hand."
                    )
                self._cancel_timer(name, unit)
                self._withdraw(name, before)
                if _lacks_reply(step.undoing, unit):
                    self._wait_for_reply(name, unit)
                else:
                    self._send_undo(step, _item_of(name), unit)
            elif unit.status == "timed_out" or (
                unit.status == "sent"
                # A wait that was begun without a time-out may have one in this code.
                and (step.command or (unit.deadline is None and step.timeout is not None))
            ):
                self._cancel_timer(name, unit)
                self._withdraw(name, before)
                self._send(step, _item_of(name), unit)
        rest = [name for name in self._standing_still() if name not in again]
        if parking is not None and self._parking is None and rest:
            self._status, self._parking = "parked", Parking(self._status, parking.reason, rest[0])
        self.go_on()

    def skip(self, chosen: str | None) -> None:
        """Go on as if what waits had been done, or undone."""
        parking = self._parking
        waiting = list(self._waiting(chosen, parking))
        if len(waiting) != 1:
            names = ", ".join(name for name, _ in waiting) or "nothing"
            raise UsageError(f"the saga waits for {names}: say which step is to be skipped.")
        [(name, step)] = waiting
        unit = self._units[name]
        self._taken_for = open_label(name, unit)
        if self._taken_for.is_undo:
            self._cancel_timer(name, unit)
            self._withdraw(name, unit)
            self._units[name] = replace(unit, status="undone", deadline=None)
            self._unpark(name)
        else:
            self._finish(step, name, unit, None)
        self.go_on()

    def undo_all(self, reason: str) -> None:
        """Undo what was done, as after a failure."""
        before = self._parking.before if self._parking else self._status
        if before != "running":
            standing = [self._parking.unit] if self._parking and self._parking.unit else []
            waiting = self._before.waiting or list(self._standing_still()) or standing
            raise UsageError(
                f"the saga is being undone already, and waits for {', '.join(waiting)}: retry or "
                f"skip that."
            )
        for step in self._definition.steps.values():
            if step.is_pivot and self._is_settled(step):
                raise UsageError(
                    f"its pivot {step.name} is done, after which nothing can be undone: retry or "
                    f"skip the step that waits, or cancel the saga."
                )
        self._parking = None
        self._status = "undoing"
        failure = Stored(UndoRequested.__name__, {"step": "", "reason": reason})
        self._failure = ("operator", failure)
        self._early.clear()
        self.go_on()

    def _waiting(
        self, chosen: str | None, parking: Parking | None
    ) -> Iterator[tuple[str, Step[Any, Any]]]:
        """The units that wait for an answer, or that the saga is parked for; or the chosen one."""
        found = {
            name: step
            for step in self._definition.steps.values()
            for name in units_of(step, self._units)
            if name in self._units
            and (
                self._units[name].status in ("sent", "undo_sent")
                or (parking is not None and parking.unit == name)
            )
        } | self._standing_still()
        if chosen is not None:
            meant = [*self._meant(chosen, found)]
            if not meant:
                names = ", ".join(found) or "nothing"
                raise UsageError(f"the saga does not wait for {chosen!r}, but for {names}.")
            yield from meant
        elif parking is not None:
            standing = {*self._standing_still(), parking.unit}
            yield from ((name, step) for name, step in found.items() if name in standing)
        else:
            yield from found.items()

    def _meant(
        self, chosen: str, found: Mapping[str, Step[Any, Any]]
    ) -> Iterator[tuple[str, Step[Any, Any]]]:
        """Those of these units that are named as lists name them: a step stands for its items, and
        what is undone has a mark, which may be left out where nothing else of the step waits."""
        named = chosen.removesuffix(":undo")
        units = {name: step for name, step in found.items() if named in (name, step.name)}
        undone = {name for name in units if self._units[name].status == "undo_sent"}
        wanted = undone if named != chosen else units.keys() - undone or undone
        return ((name, step) for name, step in units.items() if name in wanted)

    def _standing_still(self) -> dict[str, Step[Any, Any]]:
        """The units that nobody goes on with unless an operator does."""
        return {
            name: step
            for step in self._definition.steps.values()
            for name in units_of(step, self._units)
            if name in self._units and self._stands_still(step, self._units[name])
        }

    def _stands_still(self, step: Step[Any, Any], unit: UnitRecord) -> bool:
        if unit.status == "undo_sent":
            return unit.deadline is None
        before = self._parking.before if self._parking else self._status
        if unit.status == "done":  # after all, and nothing can undo it
            return step.is_pivot and before == "undoing"
        goes_forward = step.is_pivot or step.name in self._definition.after_pivot
        return unit.status == "timed_out" and goes_forward and before == "running"

    # What follows

    def go_on(self) -> None:
        """Begin the steps that can begin, or undo what can be undone; end the saga where nothing is
        left to do."""
        if self._status == "running":
            self._skip_added_steps()
            while begun := [*self._to_begin(self._definition.flow)]:
                for step in begun:
                    if self._status == "running" and step.name not in self._units:
                        self._begin(step)
                if self._status != "running":
                    return
            if self._is_settled(self._definition.flow):
                self._end("completed")
        elif self._status == "undoing" and self._undo_part(self._definition.flow):
            self._end("undone")

    def _skip_added_steps(self) -> None:
        """Skip steps before the pivot, if that has begun without them: a newer version of the code
        has added them, and if one failed now, there would be no way back."""
        steps = list(self._definition.steps.values())  # the pivot runs alone, so order is enough
        begun = [step.is_pivot and step.name in self._units for step in steps]
        for step in steps[: begun.index(True)] if True in begun else ():
            if step.name not in self._units:
                self._units[step.name] = UnitRecord("skipped", attempt=0)
                self._early.pop(step.name, None)

    def _to_begin(self, part: Part[Any]) -> Iterator[Step[Any, Any]]:
        """The steps of this part that can begin now."""
        match part:
            case Series(parts):
                first = next((each for each in parts if not self._is_settled(each)), None)
                if first is not None:
                    yield from self._to_begin(first)
            case Parallel(parts):
                for each in parts:
                    yield from self._to_begin(each)
            case Step() if part.name not in self._units:
                yield part

    def _is_settled(self, part: Part[Any]) -> bool:
        """Whether this part is done."""
        for step in part.steps():
            unit = self._units.get(step.name)
            if unit is None or unit.status not in _SETTLED:
                return False
            if step.each is not None and not all(
                self._units[name].status in _SETTLED for name in units_of(step, self._units)
            ):
                return False
        return True

    def _begin(self, step: Step[Any, Any]) -> None:
        if step.when is not None and not _called(step.when, self._state):
            self._units[step.name] = UnitRecord("skipped", attempt=0)
            self._early.pop(step.name, None)
            return
        if step.each is not None:
            items = len(_returned(Sequence, step.each, self._state))
            self._units[step.name] = UnitRecord("done", items=items)
            for item in range(items):
                self._send(step, item, UnitRecord("sent", attempt=0))
            return
        self._send(step, None, UnitRecord("sent", attempt=0))
        early = self._early.pop(step.name, None)
        if early is not None:
            event = read_kept(_event_named(step, early.name), early)
            self._answer(step, Label(step.name), self._units[step.name], event)

    def _send(
        self, step: Step[Any, Any], item: int | None, unit: UnitRecord, *, delay: float = 0.0
    ) -> None:
        """Send the command of a unit, once more."""
        label = Label(step.name, item, attempt=unit.attempt + 1)
        if step.command is not None:
            arguments = () if item is None else (_item(step, self._state, item),)
            command = _returned(Command, step.command, self._state, *arguments)
            self._sendings.append(Sending(str(label), command, delay))
        deadline = None
        if step.timeout is not None:
            self._timers[str(label)] = delay + step.timeout
            deadline = self._now + delay + step.timeout
        self._units[label.unit] = replace(
            unit, status="sent", attempt=label.attempt, deadline=deadline
        )

    def _undo_part(self, part: Part[Any]) -> bool:
        """Undo what can be undone of this part, the last first; returns whether all of it is."""
        match part:
            case Series(parts):
                return all(self._undo_part(each) for each in reversed(parts))
            case Parallel(parts):
                undone = [self._undo_part(each) for each in parts]  # all, not up to the first
                return all(undone)
            case Step():
                undone = [self._undo_unit(part, name) for name in units_of(part, self._units)]
                return all(undone)
        raise AssertionError(part)

    def _undo_unit(self, step: Step[Any, Any], name: str) -> bool:
        """Undo this unit if that can be done now; returns whether nothing is left to be undone."""
        unit = self._units.get(name)
        if unit is None:
            return True
        undo = step.undoing
        match unit.status:
            case "sent" if step.command is None:  # nobody was asked for anything
                self._cancel_timer(name, unit)
                self._units[name] = replace(unit, status="undone", deadline=None)
                return True
            case "sent" | "undo_sent":
                return False
            case "done" if undo is None:
                self._units[name] = replace(unit, status="undone")
                return True
            case "timed_out" | "dead_lettered" if undo is None or undo.needs_reply:
                return True  # a late answer is undone when it comes
            case "done" | "timed_out" | "dead_lettered":
                self._send_undo(step, _item_of(name), replace(unit, tries=1))
                return self._units[name].status == "undone"
        return True

    def _send_undo(
        self, step: Step[Any, Any], item: int | None, unit: UnitRecord, *, delay: float = 0.0
    ) -> None:
        """Send the command that undoes a unit, once more."""
        undo = step.undoing
        if undo is None:
            raise AssertionError(f"{step} has no undo")
        label = Label(step.name, item, is_undo=True, attempt=unit.undo_attempt + 1)
        arguments: list[Any] = []
        if undo.takes_item and item is not None:
            arguments.append(_item(step, self._state, item))
        if undo.takes_reply:
            reply = None if unit.answer is None else read_kept(step.ok, unit.answer)
            arguments.append(reply)
        command = _returned(Command, undo.command, self._state, *arguments)
        self._sendings.append(Sending(str(label), command, delay))
        deadline = None
        if undo.ok is not None:
            self._timers[str(label)] = delay + undo.timeout
            deadline = self._now + delay + undo.timeout
        self._units[label.unit] = replace(
            unit,
            status="undone" if undo.ok is None else "undo_sent",
            undo_attempt=label.attempt,
            deadline=deadline,
        )

    def _wait_for_reply(self, name: str, unit: UnitRecord) -> None:
        """Leave the undo of this unit until a late answer comes: it was sent by older code, whose
        undo did not take the reply."""
        self._units[name] = replace(unit, status="timed_out", deadline=None)
        self._unpark(name)

    def _end(self, status: Literal["completed", "undone"]) -> None:
        if not self._has_announced:
            if status == "completed":
                self._ending = _called(self._definition.completed, self._state)
            else:
                failure = self._read_failure()
                self._ending = _called(self._definition.undone, self._state, failure)
        self._status, self._has_announced = status, True
        self._early.clear()

    def _read_failure(self) -> BaseModel:
        assert self._failure is not None  # noqa: S101  # set by whatever began the undoing
        name, failure = self._failure
        for own in (TimedOut, DeadLettered, UndoRequested):
            if failure.name == own.__name__:
                return own.model_validate(failure.data)
        step = self._definition.steps.get(name.partition("[")[0])
        if step is None:
            raise FunctionFailed(f"the step {name}, which has failed, is not in the code any more")
        return read_kept(_event_named(step, failure.name), failure)

    # Parking and timers

    def _park(self, name: str, reason: str) -> None:
        before = self._parking.before if self._parking else self._status
        if before in ("completed", "undone"):
            before = "undoing"
        if self._parking is not None and self._parking.unit not in (None, name):
            reason = f"{self._parking.reason}; {reason}"
        self._status, self._parking = "parked", Parking(before, reason, name)

    def _unpark(self, name: str) -> None:
        """What the saga was parked for has been answered; something else may stand still, too."""
        parking = self._parking
        if parking is None or parking.unit != name:
            return
        if others := [other for other in self._standing_still() if other != name]:
            self._parking = replace(parking, unit=others[0])
        else:
            self._status, self._parking = parking.before, None

    def _cancel_timer(self, name: str, unit: UnitRecord) -> None:
        if unit.deadline is None:
            return
        label = str(open_label(name, unit))
        if self._timers.pop(label, None) is None:
            self._cancelled.append(label)

    def _withdraw(self, name: str, unit: UnitRecord) -> None:
        """Take back the newest command of this unit, if it may still wait for its delay."""
        label = str(delayed_label(name, unit) or "")
        if not label:
            return
        left = [sending for sending in self._sendings if sending.label != label]
        if len(left) == len(self._sendings):
            self._withdrawn.append(label)
        self._sendings = left


def _answers(step: Step[Any, Any], label: Label, event: Event) -> bool:
    if label.is_undo:
        return step.undoing is not None and type(event) is step.undoing.ok
    return type(event) is step.ok or type(event) in step.failed


def _lacks_reply(undo: Undo, unit: UnitRecord) -> bool:
    return undo.needs_reply and unit.answer is None


def _item_of(unit: str) -> int | None:
    _, bracket, rest = unit.partition("[")
    return int(rest[:-1]) if bracket else None


def _item(step: Step[Any, Any], state: BaseModel, number: int) -> Any:
    assert step.each is not None  # noqa: S101  # only such a step has units with numbers
    items = _called(step.each, state)
    if number >= len(items):
        raise FunctionFailed(
            f"the list of {step.name} has only {len(items)} items now, but item {number} is needed "
            f"again: it must stay as it is while the step runs, and while it may be undone"
        )
    return items[number]


def _event_named(step: Step[Any, Any], name: str) -> type[Event]:
    for model in (step.ok, *step.failed):
        if model.__identity__.name == name:
            return model
    raise FunctionFailed(f"{name}, which has answered {step.name}, is not an answer of it any more")


def _called(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function of the saga's author; FunctionFailed for whatever it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        name = getattr(function, "__name__", repr(function))
        raise FunctionFailed(f"{name} failed: {summarize(error)}") from error


def _returned(kind: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of the saga's author returns; FunctionFailed where it is not of this kind."""
    result = _called(function, *arguments)
    if not isinstance(result, kind):
        name = getattr(function, "__name__", repr(function))
        raise FunctionFailed(
            f"{name} returned {type(result).__name__} in the place of {kind.__name__}"
        )
    return result
