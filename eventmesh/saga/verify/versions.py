"""Proves that running sagas of older versions go on under a newer one.

Both versions are given by their shapes, so the proof needs no code of the old one. It walks in two
parts, with the production transition:

1. Every record that a saga of the old version can have. Whatever may come is tried at every record,
   in any order and any number of times: each answer to each command that was sent, its time-out and
   dead letter, decisions from outside, an operator's undo. That is more than can happen, and surely
   all of it.
2. Every record that these reach under the new version. Each must take what may be under way, and
   must lead to an end: completed, undone, or parked for an operator.

A saga that was started by version 1 and moved by version 2 is at a point that neither version alone
would reach. So the records of version 2 include those of version 1 that have gone on under it.

Events are known by their names alone. A new version of one needs no walk: what sagas have stored of
an older version is upcast when it is read, as a message is, and `contracts.evolution` checks that.

Records that differ in nothing that a change of version could touch are visited as one:

- A step is tried once. Later attempts carry other numbers, and meet the same steps and answers.
- A dead letter counts as a time-out, except at the pivot, where the two go different ways.
- A step that an operator skips counts as done, and an undo as answered.
- Which step has failed is not looked at; that its failure is still known is checked by itself.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from eventmesh.contracts.message import Event
from eventmesh.errors import EventMeshError
from eventmesh.runtime.declaring.retry import Retry, constant, summarize
from eventmesh.saga import transition as production
from eventmesh.saga.definition import Definition, no_message
from eventmesh.saga.draft import Transition, units_of
from eventmesh.saga.failures import UndoRequested
from eventmesh.saga.flow import Parallel, Part, Series, Step, Undo
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    Happening,
    OperatorAction,
    UnexpectedAnswer,
    UnknownStep,
    WaitedTooLong,
)
from eventmesh.saga.record import Label, SagaRecord, Stored, UnitRecord
from eventmesh.saga.shape import Shape, StepShape, Tree
from eventmesh.saga.verify.rules import content_of_record
from eventmesh.saga.verify.twin import (
    ATTEMPTS,
    Begin,
    CalledWithoutReply,
    Twin,
    TwinState,
    Undecided,
    twin_of,
)
from eventmesh.saga.verify.world import label_of

REMOVED, NOT_TAKEN, NOT_UNDONE, NO_END, UNDECIDED = "EM084", "EM085", "EM086", "EM088", "EM089"

MOST_RECORDS = 50_000


@dataclass(frozen=True, slots=True)
class Finding:
    """Why sagas of an older version do not go on: at how many records, and one of them."""

    rule: str
    step: str
    what: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found, and how many records were visited: of the old versions, and under the new."""

    findings: tuple[Finding, ...]
    old_records: int = 0
    new_records: int = 0


def prove(older: Sequence[Shape], new: Shape, *, most_records: int = MOST_RECORDS) -> Proof:
    """Whether every saga of these versions, oldest first, goes on under the new one."""
    if all(_course(shape) == _course(new) for shape in older):
        return Proof(())  # only the state or the start has changed
    found = _Findings()
    records: dict[Any, SagaRecord] = {}
    steps: dict[str, StepShape] = {}
    try:
        for shape in older:
            walk = _Walk(shape, most_records)
            kept = [each for each in records.values() if not list(_lost(each, steps, shape))]
            steps.update(shape.steps)
            walk.visit([*walk.beginnings(), *kept])
            records |= walk.records
        roots = []
        for record in records.values():
            lost = list(_lost(record, steps, new))
            for rule, step, what in lost:
                found.add(rule, step, what, record)
            if not lost:
                roots.append(record)
        walk = _Walk(new, most_records)
        walk.visit(roots, found)
        for record in walk.without_end():
            found.add(NO_END, "", "nothing that may come leads such a saga to an end", record)
    except _TooMany as bound:
        for record in bound.records.values() if not records else ():
            for rule, step, what in _lost(record, dict(older[0].steps), new):
                found.add(rule, step, what, record)
        what = f"more than {most_records:,} kinds of states were met"
        return Proof((*found.all(), Finding(UNDECIDED, "", what, most_records, "")), len(records))
    return Proof(tuple(found.all()), len(records), len(walk.records))


def _course(shape: Shape) -> Any:
    """What decides how a saga moves."""
    return shape.flow, dict(shape.steps), shape.has_key


class _TooMany(Exception):  # a bound, not an error
    """More records were met than may be visited."""

    def __init__(self, records: Mapping[Any, SagaRecord]) -> None:
        self.records = records
        super().__init__()


@dataclass
class _Findings:
    """Findings, each counted once for all the records that it is about."""

    _found: dict[tuple[str, str, str], tuple[int, SagaRecord]] = field(default_factory=dict)

    def add(self, rule: str, step: str, what: str, record: SagaRecord) -> None:
        count, example = self._found.get((rule, step, what), (0, record))
        self._found[rule, step, what] = count + 1, example

    def all(self) -> list[Finding]:
        return [
            Finding(*about, count, described(example))
            for about, (count, example) in sorted(self._found.items(), key=lambda item: item[0])
        ]


def described(record: SagaRecord) -> str:
    """Where a saga stands, for people."""
    units = ", ".join(
        f"{name} {unit.status.replace('_', ' ')}"
        for name, unit in record.units.items()
        if unit.items is None
    )
    return f"{record.status}: {units or 'no step has begun'}"


# What a new version does not take


def _lost(
    record: SagaRecord, old: Mapping[str, StepShape], new: Shape
) -> Iterator[tuple[str, str, str]]:
    """What this record, or an answer under way to it, needs and does not find in the new version:
    the rule, the step and the words."""
    if record.status in ("completed", "cancelled"):
        return  # whatever still comes changes nothing
    seen: set[tuple[str, str, str]] = set()
    for name, unit in record.units.items():
        step = label_of(name).step
        for rule, what in _lost_by_unit(unit, step, old[step], new.steps.get(step)):
            if (rule, step, what) not in seen:
                seen.add((rule, step, what))
                yield rule, step, what
    for step, event in record.early.items():
        now = new.steps.get(step)
        if now is None or event.name not in (now.ok, *now.failed):
            yield NOT_TAKEN, step, f"{event.name}, which has come early, is kept for nothing"


_AWAITED = ("sent", "failed", "timed_out", "dead_lettered")
"""A late ok may still come to a step that counts as failed."""


def _lost_by_unit(
    unit: UnitRecord, step: str, old: StepShape, new: StepShape | None
) -> Iterator[tuple[str, str]]:
    has_effect = unit.status in ("done", "undo_sent", *_AWAITED)
    if new is None:
        if unit.status in ("undo_sent", *_AWAITED) and unit.items is None:
            yield REMOVED, "it was removed, but a saga may wait in it"
        elif unit.status == "done" and old.undo is not None:
            yield NOT_UNDONE, "it was removed together with its undo"
        return
    if old.each != new.each and unit.status != "skipped":
        now = "has each= now" if new.each else "has no each= any more"
        yield NOT_TAKEN, f"the step {now}, and its commands were sent the other way"
        return
    if unit.status in _AWAITED:
        for name in (old.ok, *old.failed):
            if name not in (new.ok, *new.failed):
                yield NOT_TAKEN, f"{name}, which may be under way, does not answer it any more"
        if old.ok in new.failed or new.ok in old.failed:
            yield NOT_TAKEN, "what was a failure is the ok, or the other way round"
    if old.undo is None or not has_effect:
        return
    if new.undo is None:
        if unit.status == "undo_sent" or not new.needs_no_undo:
            yield NOT_UNDONE, "its undo was removed"
    elif unit.status == "undo_sent" and old.undo.ok is not None and old.undo.ok != new.undo.ok:
        yield NOT_TAKEN, f"{old.undo.ok}, which may be under way, does not answer its undo any more"
    elif new.undo.takes_reply and unit.answer is not None and unit.answer.name == old.ok != new.ok:
        yield NOT_UNDONE, f"its undo takes {new.ok}, and {old.ok} has answered the step"


# The walk


@dataclass
class _Walk:
    """All records that a shape leads to, from those it begins with."""

    shape: Shape
    most_records: int
    records: dict[Any, SagaRecord] = field(default_factory=dict)
    _twin: Twin = field(init=False)
    _edges: dict[Any, set[Any]] = field(default_factory=dict)
    """Which records lead to a record, without an operator."""

    def __post_init__(self) -> None:
        self._twin = twin_of(_skeleton(self.shape))

    def beginnings(self) -> Iterator[SagaRecord]:
        """The first records."""
        return (made.record for made in _started(self._twin.definition, TwinState()))

    def visit(self, roots: Iterable[SagaRecord], found: _Findings | None = None) -> None:
        """Visit all records that these lead to. With `found`, what is wrong is added to it."""
        new: deque[tuple[Any, SagaRecord]] = deque()

        def meet(record: SagaRecord) -> Any:
            if record.failure is not None:
                record = replace(record, failure=_FAILURE)
            key = content_of_record(record)
            if key not in self.records:
                if len(self.records) >= self.most_records:
                    raise _TooMany(self.records)
                self.records[key] = record
                new.append((key, record))
            return key

        for root in roots:
            meet(root)
        while new:
            before, record = new.popleft()
            for happening in _happenings(self._twin, record):
                for made in self._advanced(record, happening, found):
                    if not made.has_changed or not _is_bounded(made.record):
                        continue
                    if found is not None:
                        self._check(record, made.record, found)
                    after = meet(made.record)
                    if not isinstance(happening, OperatorAction):
                        self._edges.setdefault(after, set()).add(before)

    def without_end(self) -> Iterator[SagaRecord]:
        """The records from which no end is reached without an operator."""
        ends = [
            key
            for key, record in self.records.items()
            if record.ended or record.status == "parked" or self._may_wait(record)
        ]
        reached, new = set(ends), deque(ends)
        while new:
            for key in self._edges.get(new.popleft(), ()):
                if key not in reached:
                    reached.add(key)
                    new.append(key)
        return (record for key, record in self.records.items() if key not in reached)

    def _may_wait(self, record: SagaRecord) -> bool:
        """Whether its author has said that it may wait forever."""
        return any(
            unit.status == "sent" and unit.deadline is None and unit.items is None
            for unit in record.units.values()
        )

    def _advanced(
        self, record: SagaRecord, happening: Happening, found: _Findings | None
    ) -> list[Transition]:
        """What comes of it, for each choice of `when=` and `each=`."""
        try:
            return list(_chosen(self._twin.definition, record, happening))
        except (UnknownStep, UnexpectedAnswer) as error:
            what = f"an answer would become a dead letter: {error}"
        except CalledWithoutReply:
            what = "an undo that needs the reply of its step is called without one"
        except EventMeshError as error:
            if isinstance(happening, OperatorAction):
                return []  # it cannot do that now
            what = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, it would strand a saga
            what = f"the transition fails: {summarize(error)}"
        if found is not None:
            found.add(NO_END, "", what, record)
        return []

    def _check(self, before: SagaRecord, after: SagaRecord, found: _Findings) -> None:
        if after.parking is not None and after.parking.unit is None and before.parking is None:
            found.add(NO_END, "", f"it is parked by an error: {after.parking.reason}", before)
        if after.status not in ("undoing", "undone") or before.status != "running":
            return
        for step in self._twin.definition.steps.values():
            unit = before.units.get(step.name)
            if step.is_pivot and unit is not None and unit.status in ("done", "skipped"):
                what = f"the pivot {step.name} is done, and a step before it can still fail"
                found.add(NO_END, step.name, what, before)


def _is_bounded(record: SagaRecord) -> bool:
    return all(unit.undo_attempt <= ATTEMPTS for unit in record.units.values())


_FAILURE = ("operator", Stored(UndoRequested.__name__, {"step": "", "reason": "verify"}))


def _started(definition: Definition, state: TwinState) -> Iterator[Transition]:
    try:
        yield production.start(definition, Begin(choices=state.choices))
    except Undecided as undecided:
        for option in undecided.options:
            yield from _started(definition, _decided(state, undecided.step, option))


def _chosen(
    definition: Definition, record: SagaRecord, happening: Happening
) -> Iterator[Transition]:
    try:
        yield production.advance(definition, record, happening)
    except Undecided as undecided:
        assert isinstance(record.state, TwinState)  # noqa: S101  # only twins are walked
        for option in undecided.options:
            state = _decided(record.state, undecided.step, option)
            yield from _chosen(definition, replace(record, state=state), happening)


def _decided(state: TwinState, step: str, option: int) -> TwinState:
    return TwinState(choices={**state.choices, step: option})


def _happenings(twin: Twin, record: SagaRecord) -> Iterator[Happening]:
    """Whatever may come to a saga at this record."""
    if record.status == "cancelled":
        return
    for step in twin.definition.steps.values():
        answers = [twin.oks[step.name]]
        if step.name in twin.refusals:
            answers.append(twin.refusals[step.name])
        if step.correlate is not None:
            yield from (Answered(event, None) for event in answers)
        for name in units_of(step, record.units):
            unit = record.units.get(name)
            if unit is not None:
                yield from _about_unit(twin, step, name, unit, answers)
    if not record.ended:
        yield OperatorAction("undo", "verify")


def _about_unit(
    twin: Twin, step: Step[Any, Any], name: str, unit: UnitRecord, answers: list[Event]
) -> Iterator[Happening]:
    label = label_of(name)
    for attempt in range(1, unit.attempt + 1):
        text = str(replace(label, attempt=attempt))
        # Its time-out may have been set by a version in which it had one.
        yield WaitedTooLong(text)
        if step.command is not None:
            yield from (Answered(event, text) for event in answers)
            if step.is_pivot:
                yield CommandDeadLettered(text, "dead-lettered")
    # Without an undo, these are second copies: `_lost` has found those that still matter.
    for attempt in range(1, unit.undo_attempt + 1) if step.undoing is not None else ():
        text = str(Label(label.step, label.item, is_undo=True, attempt=attempt))
        if step.name in twin.undos:
            yield Answered(twin.undos[step.name], text)
        yield CommandDeadLettered(text, "dead-lettered")


# A definition that has this shape


def _skeleton(shape: Shape) -> Definition:
    """A definition of this shape, whose functions are never called: `twin_of` replaces them."""
    steps = {name: _step(shape, name, step) for name, step in shape.steps.items()}

    def part(flow: Tree) -> Part[Any]:
        if isinstance(flow, str):
            return steps[flow]
        kind, parts = flow
        made = tuple(map(part, parts))
        return Series(made) if kind == "series" else Parallel(made)

    return Definition(
        name=shape.name,
        version=shape.version,
        state=TwinState,
        flow=part(shape.flow),
        starts={},
        completed=no_message,
        undone=no_message,
        publishes=(),
        key=_unused if shape.has_key else None,
    )


def _step(shape: Shape, name: str, step: StepShape) -> Step[Any, Any]:
    retry = Retry(attempts=1, backoff=constant(0), jitter=0.0)
    made = Step[Any, Any](
        shape.name,
        name,
        None if step.command is None else _unused,
        ok=_event(step.ok),
        failed=[_event(each) for each in step.failed],
        timeout=1.0 if step.has_timeout else None,
        retry=retry,
        when=_unused if step.when else None,
        each=_unused if step.each else None,
        correlate=_unused if step.correlated else None,
        no_undo="frozen" if step.needs_no_undo else "",
        is_pivot=step.kind == "pivot",
    )
    if step.undo is not None:
        ok = None if step.undo.ok is None else _event(step.undo.ok)
        takes, needs = step.undo.takes_reply, step.undo.needs_reply
        made.undoing = Undo(_unused, ok, 1.0, retry, takes, needs)
    return made


def _unused(*_: Any) -> Any:
    raise AssertionError("the functions of a skeleton are not called")


@cache
def _event(name: str) -> type[Event]:
    """An event of this name, without fields."""
    made: Callable[..., Any] = types.new_class
    event: type[Event] = made(
        name.rpartition(".")[2].title().replace("_", ""), (Event,), {"name": name, "version": 1}
    )
    return event
