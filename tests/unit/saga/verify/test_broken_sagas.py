"""A saga, or a transition, with a defect put in for every property: each defect is found.

The defects are methods of the production draft, overridden. Most of them were real at some time, in
this project or in another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from eventmesh import Event, Saga
from eventmesh.errors import UsageError
from eventmesh.saga import transition as production
from eventmesh.saga.definition import Definition
from eventmesh.saga.draft import Draft
from eventmesh.saga.flow import Parallel, Part, Series, Step
from eventmesh.saga.happening import Answered, CommandDeadLettered, Happening, UnexpectedAnswer
from eventmesh.saga.record import Label, SagaRecord, UnitRecord, parse_label
from eventmesh.saga.verify import Bounds, Report, verify
from eventmesh.saga.verify.properties import PROPERTIES
from tests.unit.saga.trips import (
    ONCE,
    TWICE,
    Trip,
    UndoForm,
    add_last,
    add_pivot,
    add_step,
    new_saga,
)

BOUNDS = Bounds(worlds=2_500)
"""Few, but more than it takes to find any of the defects below."""


def two_steps(undo: UndoForm = "reply", **options: Any) -> Saga[Trip]:
    saga = new_saga()
    a, b = add_step(saga, "a", undo=undo, **options), add_step(saga, "b", undo=undo, **options)
    saga.flow(a >> b)
    return saga


def with_pivot() -> Saga[Trip]:
    saga = new_saga()
    a = add_step(saga, "a")
    saga.flow(a >> add_pivot(saga, "p") >> add_last(saga, "z"))
    return saga


def conditional() -> Saga[Trip]:
    saga = new_saga()
    a = add_step(saga, "a")
    saga.flow(a >> add_step(saga, "b", when=lambda state: state.wanted))
    return saga


def answered_by_key() -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    saga.flow(add_step(saga, "a", undo="state", undo_retry=ONCE, correlate=lambda event: 1))
    return saga


def side_by_side() -> Saga[Trip]:
    saga = new_saga()
    a, b = (add_step(saga, name, undo_retry=ONCE) for name in "ab")
    saga.flow(a & b)
    return saga


def of_items() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="item and optional", each=lambda state: state.items))
    return saga


# The defects


class UndoesForwards(Draft):
    def _undo_part(self, part: Part[Any]) -> bool:
        if isinstance(part, Series):
            return all(self._undo_part(each) for each in part.parts)
        return super()._undo_part(part)


class UndoesAllAtOnce(Draft):
    def _undo_part(self, part: Part[Any]) -> bool:
        if isinstance(part, Series):
            return super()._undo_part(Parallel(part.parts))
        return super()._undo_part(part)


class IgnoresLateAnswers(Draft):
    def _answer_late(self, *_: Any) -> str:
        return "too late"


class IgnoresLateAnswersByKey(Draft):
    """Of a saga that has ended."""

    def _apply_correlated(self, event: Event) -> str:
        return "too late" if self._status == "undone" else super()._apply_correlated(event)


class ForgetsSecondAttempts(Draft):
    def _answer(self, step: Step[Any, Any], label: Label, unit: UnitRecord, event: Any) -> str:
        if unit.status in ("undo_sent", "undone") and unit.answer is not None:
            return "a duplicate"
        return super()._answer(step, label, unit, event)


class CountsOldAnswersOfUndos(Draft):
    def _answer_late(self, step: Step[Any, Any], label: Label, unit: UnitRecord, event: Any) -> str:
        rule = super()._answer_late(step, label, unit, event)
        self._units[label.unit] = replace(self._units[label.unit], void_undos=0)
        return rule


class UndoesWithoutReply(Draft):
    def _undo_unit(self, step: Step[Any, Any], name: str) -> bool:
        unit = self._units.get(name)
        if unit is not None and unit.status == "timed_out" and step.undoing is not None:
            self._send_undo(step, None, replace(unit, tries=1))
            return False
        return super()._undo_unit(step, name)


class UndoesWhatWasRefused(Draft):
    def _undo_unit(self, step: Step[Any, Any], name: str) -> bool:
        unit = self._units.get(name)
        if unit is not None and unit.status == "failed" and step.undoing is not None:
            self._send_undo(step, None, replace(unit, tries=1))
            return False
        return super()._undo_unit(step, name)


class AnnouncesTwice(Draft):
    def _end(self, status: Any) -> None:
        self._has_announced = False
        super()._end(status)


class NeverAnnounces(Draft):
    def _end(self, status: Any) -> None:
        super()._end(status)
        self._ending = None


class ForgetsThePivot(Draft):
    """Takes a step after the pivot for one before it."""

    def __init__(self, definition: Definition, record: SagaRecord, now: float) -> None:
        definition = copy.copy(definition)
        definition.__dict__["after_pivot"] = frozenset()
        super().__init__(definition, record, now)


class LetsThePivotGo(Draft):
    """Undoes everything although the pivot has been done meanwhile."""

    def _finish(self, step: Step[Any, Any], name: str, unit: UnitRecord, event: Any) -> None:
        if step.is_pivot and self._before.status == "undoing":
            self._status, self._failure = "undoing", self._before.failure
        super()._finish(step, name, unit, event)


class ForgetsTheTimerOfASecondAttempt(Draft):
    def _send(self, step: Step[Any, Any], item: int | None, unit: Any, **options: Any) -> None:
        super()._send(step, item, unit, **options)
        if unit.attempt > 0:
            self._timers.clear()


class CancelsTheTimersOfOthers(Draft):
    def _finish(self, *arguments: Any) -> None:
        super()._finish(*arguments)
        self._cancelled += [str(parse_label(name)) for name in self._units]


class ParksWithoutAReason(Draft):
    def _park(self, name: str, reason: str) -> None:
        super()._park(name, "")


class ForgetsWhatElseStandsStill(Draft):
    def _standing_still(self) -> dict[str, Step[Any, Any]]:
        return {}


class LosesWhatIsHeld(Draft):
    def retry(self, chosen: str | None) -> None:
        self._held = ()
        super().retry(chosen)


class RefusesRetries(Draft):
    def retry(self, chosen: str | None) -> None:
        raise UsageError("not now")


class RetriesNothing(Draft):
    def retry(self, chosen: str | None) -> None:
        pass


class IgnoresDeadLetters(Draft):
    def apply(self, happening: Happening) -> str:
        return "stale" if isinstance(happening, CommandDeadLettered) else super().apply(happening)


class TakesAQuestionForAnAnswer(Draft):
    def _is_settled(self, part: Part[Any]) -> bool:
        return all(step.name in self._units for step in part.steps())


class ReopensWhatIsCompleted(Draft):
    def apply(self, happening: Happening) -> str:
        if self._status == "completed" and isinstance(happening, Answered):
            self._status = "undoing"
            return "applied"
        return super().apply(happening)


class GoesOnWhenCancelled(Draft):
    def apply(self, happening: Happening) -> str:
        if self._status == "cancelled":
            self._status = "running"
        return super().apply(happening)


class RejectsOldAttempts(Draft):
    def _answer(self, step: Step[Any, Any], label: Label, unit: UnitRecord, event: Any) -> str:
        if label.attempt < unit.attempt:
            raise UnexpectedAnswer("it is old")
        return super()._answer(step, label, unit, event)


class SendsWhatWasWithdrawn(Draft):
    def _withdraw(self, name: str, unit: UnitRecord) -> None:
        pass


class Breaks(Draft):
    def _answer_late(self, *_: Any) -> str:
        raise KeyError("late")


class NeverRunsAStepWithACondition(Draft):
    def _begin(self, step: Step[Any, Any]) -> None:
        if step.when is not None:
            self._units[step.name] = UnitRecord("skipped", attempt=0)
            return
        super()._begin(step)


SAGAS: dict[str, Callable[[], Saga[Trip]]] = {
    "two steps": two_steps,
    "two steps, sent twice": lambda: two_steps(retry=TWICE),
    "two steps, undone at once": lambda: two_steps("state"),
    "two steps that wait for ever": lambda: two_steps(timeout=None),
    "a pivot": with_pivot,
    "a condition": conditional,
    "side by side": side_by_side,
    "answered by key": answered_by_key,
    "items, undone at once": of_items,
}

BROKEN: list[tuple[str, str, type[Draft]]] = [
    ("ends", "two steps that wait for ever", IgnoresDeadLetters),
    ("ends", "two steps", LosesWhatIsHeld),
    ("parked with a reason", "a pivot", ParksWithoutAReason),
    ("retry goes on", "a pivot", RefusesRetries),
    ("retry goes on", "a pivot", RetriesNothing),
    ("undone only what was done", "two steps", UndoesWithoutReply),
    ("undone only what was done", "two steps, undone at once", UndoesWhatWasRefused),
    ("nothing left behind", "items, undone at once", CountsOldAnswersOfUndos),
    ("undone in reverse", "two steps", UndoesForwards),
    ("undone in reverse", "two steps", UndoesAllAtOnce),
    ("nothing left behind", "two steps", IgnoresLateAnswers),
    ("nothing left behind", "answered by key", IgnoresLateAnswersByKey),
    ("nothing left behind", "two steps, sent twice", ForgetsSecondAttempts),
    ("nothing left behind", "two steps, undone at once", CountsOldAnswersOfUndos),
    ("nothing left behind", "a pivot", LetsThePivotGo),
    ("completed when done", "two steps", TakesAQuestionForAnAnswer),
    ("forward after the pivot", "a pivot", ForgetsThePivot),
    ("waits end", "two steps, sent twice", ForgetsTheTimerOfASecondAttempt),
    ("waits end", "side by side", CancelsTheTimersOfOthers),
    ("ends", "side by side", ForgetsWhatElseStandsStill),
    ("announced once", "two steps", AnnouncesTwice),
    ("announced once", "two steps", NeverAnnounces),
    ("ends stay", "two steps", ReopensWhatIsCompleted),
    ("ends stay", "two steps", GoesOnWhenCancelled),
    ("withdrawn when not needed", "two steps, sent twice", SendsWhatWasWithdrawn),
    ("answers are taken", "two steps, sent twice", RejectsOldAttempts),
    ("no error", "two steps", Breaks),
]


@pytest.mark.parametrize("saga", SAGAS)
def test_without_a_defect_the_saga_passes(saga: str) -> None:
    report = found(SAGAS[saga]().definition)
    assert report.passed, "\n".join(report.lines())


@pytest.mark.parametrize(
    ("name", "saga", "defect"), BROKEN, ids=[defect.__name__ for _, _, defect in BROKEN]
)
def test_a_defect_is_found_and_its_story_is_told(
    name: str, saga: str, defect: type[Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = SAGAS[saga]().definition
    monkeypatch.setattr(production, "Draft", defect)
    report = found(definition)
    assert report.found.broken is not None
    assert report.found.broken.name == name
    assert not report.passed
    told = "\n".join(report.lines())
    assert f"FAILED {name}: {report.found.broken.problem}" in told
    assert "  1. The saga starts" in told
    assert "sequenceDiagram" in told


def test_every_property_is_broken_by_a_defect() -> None:
    assert {each.name for each in PROPERTIES} <= {name for name, _, _ in BROKEN}


def test_a_step_that_nothing_reaches_is_reported_and_not_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    definition = conditional().definition
    monkeypatch.setattr(production, "Draft", NeverRunsAStepWithACondition)
    report = found(definition)
    assert report.found.broken is None
    assert report.unreached == ["b", "b:undo"]
    assert not report.passed
    assert any("never      b:undo: FAILED" in line for line in report.lines())


def found(definition: Definition) -> Report:
    return verify(definition, BOUNDS)
