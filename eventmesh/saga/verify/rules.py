"""The transition that is verified, with its results remembered.

The transition is a pure function of a record and of what has happened, and many worlds share a
record: they differ in what is under way. So each result is computed once. Records with the same
content become the same object, by which the exploration recognizes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eventmesh.errors import EventMeshError
from eventmesh.runtime.declaring.retry import summarize
from eventmesh.saga import transition as production
from eventmesh.saga.definition import Definition
from eventmesh.saga.draft import Transition
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    Happening,
    OperatorAction,
    WaitedTooLong,
)
from eventmesh.saga.record import SagaRecord, UnitRecord
from eventmesh.saga.verify.twin import Begin, TwinState


class TransitionFailed(EventMeshError):
    """The transition has raised an error that it does not promise."""


@dataclass(frozen=True)
class Rules:
    """The transition: the production one, unless a test breaks it."""

    start: Callable[..., Transition] = production.start
    advance: Callable[..., Transition] = production.advance


@dataclass
class RememberedRules:
    """These rules for one definition, each result computed once."""

    rules: Rules
    definition: Definition
    _records: dict[Any, SagaRecord] = field(default_factory=dict)
    _results: dict[tuple[int, Any], Transition] = field(default_factory=dict)

    def start(self, begin: Begin) -> Transition:
        """The first transition."""
        return self._with_one_record(self._called(self.rules.start, begin))

    def advance(self, record: SagaRecord, happening: Happening) -> Transition:
        """The next one. `record` is one that these rules have returned. Raises TransitionFailed
        besides what the transition promises."""
        key = id(record), _content(happening)
        result = self._results.get(key)
        if result is None:
            made = self._called(self.rules.advance, record, happening)
            result = self._results[key] = self._with_one_record(made)
        return result

    def _called(self, function: Callable[..., Transition], *arguments: Any) -> Transition:
        try:
            return function(self.definition, *arguments)
        except EventMeshError:
            raise
        except Exception as error:
            raise TransitionFailed(f"the transition raised {summarize(error)}") from error

    def one(self, record: SagaRecord) -> SagaRecord:
        """The one record that stands for all of this content."""
        return self._records.setdefault(content_of_record(record), record)

    def _with_one_record(self, transition: Transition) -> Transition:
        return replace(transition, record=self.one(transition.record))


def _content(happening: Happening) -> Any:
    match happening:
        case Answered(event, label):
            return "answered", type(event), label
        case WaitedTooLong(label):
            return "timed_out", label
        case CommandDeadLettered(label):
            return "dead_lettered", label
        case OperatorAction(operation, _, step):
            return operation, step
    raise AssertionError(happening)


def content_of_record(record: SagaRecord) -> Any:
    """All of a record that the rules look at: no times, and no texts for people."""
    parking, failure = record.parking, record.failure
    assert isinstance(record.state, TwinState)  # noqa: S101  # only twins are verified
    return (
        record.status,
        frozenset(record.state.choices.items()),
        record.state.is_failing,
        parking and (parking.before, parking.unit, bool(parking.reason)),
        failure and (failure[0], failure[1].name),
        record.has_announced,
        tuple(content_of_held(kept) for kept in record.held),
        tuple((name, event.name) for name, event in record.early.items()),
        frozenset((name, content_of_unit(unit)) for name, unit in record.units.items()),
    )


def content_of_unit(unit: UnitRecord) -> Any:
    """All of a unit's record that the rules look at."""
    return (
        unit.status,
        unit.attempt,
        unit.undo_attempt,
        unit.tries,
        unit.answer and unit.answer.name,
        unit.answered,
        unit.void_undos,
        unit.deadline is not None,
        unit.items,
    )


def content_of_held(kept: Mapping[str, Any]) -> Any:
    """All of something that is held which the rules look at: its label, and what it is."""
    for kind in ("answered", "waited_too_long", "dead_lettered"):
        if kind in kept:
            return kept[kind], kind, kept.get("name")
    raise AssertionError(kept)
