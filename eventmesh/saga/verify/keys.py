"""When two worlds are the same for the exploration.

A world is reduced to a tuple of small numbers: one for the saga as a whole, and one for each step
with its participant, messages and time-outs. Two reductions lose nothing:

- *Symmetry*: side by side branches of the same form are sorted, and so are the units of a step with
  `each=`. The transition knows steps by name only, so what holds for one order holds for all.
- What nobody reads again is left out: which step has failed, texts, and times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eventmesh.saga.flow import Parallel, Part, Series, Step
from eventmesh.saga.record import SagaRecord
from eventmesh.saga.verify.rules import content_of_held, content_of_unit
from eventmesh.saga.verify.twin import Twin
from eventmesh.saga.verify.world import NOTHING, World, label_of

Key = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Side by side branches of the same form: where the numbers of each begin, and how many."""

    starts: tuple[int, ...]
    length: int


@dataclass
class Keys:
    """Makes the keys of one twin's worlds."""

    twin: Twin
    use_symmetry: bool = True
    _numbers: dict[Any, int] = field(default_factory=dict)
    _units: dict[Any, int] = field(default_factory=dict)
    _owns: dict[tuple[int, str], int] = field(default_factory=dict)
    _record_owns: dict[int, tuple[int | None, ...]] = field(default_factory=dict)
    _wholes: dict[int, int] = field(default_factory=dict)
    _groups: tuple[_Group, ...] = ()

    def __post_init__(self) -> None:
        self._steps = list(self.twin.definition.steps.values())
        self._indexes = {
            step.name: index for index, step in enumerate(self._steps) if step.each is None
        }
        self._oks = {step.name: step.ok.__identity__.name for step in self._steps}
        if self.use_symmetry:
            # Inner groups first: their branches must be sorted before the outer ones are compared.
            self._groups = tuple(_groups(self.twin.definition.flow, 0))

    def swaps(self) -> Iterator[Mapping[str, str]]:
        """For each two branches of the same form: the names of their steps, each to the other's."""
        names = [step.name for step in self._steps]
        for group in self._groups:
            first, *others = (names[start : start + group.length] for start in group.starts)
            for other in others:
                yield dict(zip([*first, *other], [*other, *first], strict=True))

    def all_numbers(self, world: World) -> list[int]:
        """One number for each step."""
        return [self._step(step, world) for step in self._steps]

    def numbers(self, world: World, before: World, known: Sequence[int]) -> list[int]:
        """The same, where `known` are those of the world before: most have not changed."""
        own, own_before = self._owns_of(world.record), self._owns_of(before.record)
        units, units_before = world.units, before.units
        return [
            known[index]
            if own[index] is not None
            and own[index] == own_before[index]
            and units.get(step.name) is units_before.get(step.name)
            else self._step(step, world)
            for index, step in enumerate(self._steps)
        ]

    def key(self, world: World, numbers: Sequence[int]) -> Key:
        """The key of a world with these numbers."""
        sorted_numbers = list(numbers)
        for group in self._groups:
            ends = [(start, start + group.length) for start in group.starts]
            branches = sorted(sorted_numbers[start:end] for start, end in ends)
            for (start, end), branch in zip(ends, branches, strict=True):
                sorted_numbers[start:end] = branch
        return (self.whole(world), *sorted_numbers)

    def number_of(self, unit: str, world: World, numbers: Sequence[int]) -> int:
        """The number of one unit."""
        index = self._indexes.get(unit)
        return self.unit(unit, world) if index is None else numbers[index]

    def _owns_of(self, record: SagaRecord) -> tuple[int | None, ...]:
        """What the record says of each step; None for a step that has several units."""
        known = self._record_owns.get(id(record))
        if known is None:
            known = self._record_owns[id(record)] = tuple(
                self._own(record, step.name) if step.each is None else None for step in self._steps
            )
        return known

    def whole(self, world: World) -> int:
        """The number of what is not about one step."""
        record = world.record
        known = self._wholes.get(id(record))
        if known is None:
            parking = record.parking
            known = self._wholes[id(record)] = self._number(
                (
                    "record",
                    record.status,
                    parking and (parking.before, parking.unit is None),
                    record.failure is None,
                    record.has_announced,
                    tuple(each for each in _held(record) if each[1] is None),
                )
            )
        return self._number(
            ("whole", known, world.announced, world.operator_actions, world.function_errors)
        )

    def _step(self, step: Step[Any, Any], world: World) -> Any:
        begun = world.record.units.get(step.name)
        if step.each is None or begun is None or begun.items is None:
            return self.unit(step.name, world)
        numbers = [self.unit(f"{step.name}[{item}]", world) for item in range(begun.items)]
        return self._number((begun.items, *(sorted(numbers) if self.use_symmetry else numbers)))

    def unit(self, name: str, world: World) -> int:
        """The number of what is about one unit."""
        around = world.units.get(name, NOTHING)
        own = self._own(world.record, name)
        number = self._units.get((name, own, around))
        if number is None:
            # Labels without the unit's name, by which it is told from others of the same form.
            timers = frozenset(label[len(name) :] for label in around.timers)
            number = self._number(("unit", own, around._replace(timers=timers)))
            self._units[name, own, around] = number
        return number

    def _own(self, record: SagaRecord, name: str) -> int:
        """The number of what the record says of a unit."""
        known = self._owns.get((id(record), name))
        if known is None:
            unit = record.units.get(name)
            content: Any = None
            if unit is not None:
                answer = unit.answer and unit.answer.name == self._oks[name.partition("[")[0]]
                content = (*content_of_unit(replace(unit, answer=None)), answer)
            is_parked = record.parking is not None and record.parking.unit == name
            early = record.early.get(name)
            held = tuple(
                (number, label[len(name) :], kind, event == self._oks[name.partition("[")[0]])
                for number, label, kind, event in _held(record)
                if label is not None and label_of(label).unit == name
            )
            known = self._number(("own", content, is_parked, early and early.name, held))
            self._owns[id(record), name] = known
        return known

    def _number(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))


def _held(record: SagaRecord) -> Iterator[tuple[int, str | None, str, str | None]]:
    """What is held, in order: its number, label, kind, and the name of the event."""
    for number, kept in enumerate(record.held):
        yield (number, *content_of_held(kept))


def _groups(part: Part[Any], start: int) -> Iterator[_Group]:
    """The groups of equal branches in this part, whose numbers begin at `start`."""
    if not isinstance(part, Series | Parallel):
        return
    positions: dict[Any, list[int]] = {}
    lengths: dict[Any, int] = {}
    for each in part.parts:
        yield from _groups(each, start)
        form, length = _form(each), len(list(each.steps()))
        positions.setdefault(form, []).append(start)
        lengths[form] = length
        start += length
    if isinstance(part, Parallel):
        for form, starts in positions.items():
            if len(starts) > 1:
                yield _Group(tuple(starts), lengths[form])


def _form(part: Part[Any]) -> Any:
    """What distinguishes this part, but for the names of its steps."""
    match part:
        case Series(parts):
            return ("series", *(_form(each) for each in parts))
        case Parallel(parts):
            return ("parallel", *(_form(each) for each in parts))
        case Step() if part.correlate is not None:
            return part.name  # its events may answer other steps, too
        case Step():
            undo = part.undoing
            return (
                part.command is None,
                bool(part.failed),
                part.timeout is None,
                part.retry and part.retry.attempts,
                part.when is None,
                part.each is None,
                bool(part.no_undo),
                part.is_pivot,
                undo and (undo.ok is None, undo.needs_reply, undo.takes_reply, undo.retry.attempts),
            )
    raise AssertionError(part)
