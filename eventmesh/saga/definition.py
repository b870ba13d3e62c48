"""A complete saga as data, and what must hold before it may run.

`authoring` collects the decorated functions, `define` checks that they fit together, and the rest
of the package reads the result. A mistake that would strand a saga in production, such as a step
that nothing undoes, is a UsageError when its service is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event, Message, identity_of
from eventmesh.contracts.secret_fields import secret_fields
from eventmesh.errors import UsageError
from eventmesh.saga.failures import OWN_FAILURES
from eventmesh.saga.flow import (
    Parallel,
    Part,
    Series,
    Step,
    hints_of,
    members_of,
    parameters_of,
)

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_STEP = re.compile(r"[a-z_][a-z0-9_]{0,99}", re.IGNORECASE)

Migration = Callable[[dict[str, Any]], dict[str, Any]]
"""From the state of an older version, as JSON, to that of the next one."""


@dataclass(frozen=True)
class Definition:
    """A saga whose parts fit together; `define` makes it."""

    name: str
    version: int
    state: type[BaseModel]
    flow: Part[Any]
    starts: Mapping[type[Message], Callable[[Any], BaseModel]]
    """What starts it, with the functions that return the first state."""
    completed: Callable[[Any], Message | None]
    undone: Callable[[Any, Any], Message | None]
    publishes: tuple[type[Message], ...]
    key: Callable[[Any], object] | None = None
    """The business key by which events without labels find their saga."""
    sources: tuple[str, ...] = ()
    migrations: Mapping[int, Migration] = field(default_factory=dict)

    @cached_property
    def steps(self) -> Mapping[str, Step[Any, Any]]:
        """All steps by name, in the order in which the flow is written."""
        return {step.name: step for step in self.flow.steps()}

    @cached_property
    def after_pivot(self) -> frozenset[str]:
        """Names of the steps behind the point of no return: they can only go forward."""
        if not isinstance(self.flow, Series):
            return frozenset()
        names: list[str] = []
        passed = False
        for part in self.flow.parts:
            if passed:
                names += [step.name for step in part.steps()]
            passed = passed or (isinstance(part, Step) and part.is_pivot)
        return frozenset(names)

    def replies(self) -> Iterator[type[Event]]:
        """Every event that may answer a step or an undo."""
        for step in self.steps.values():
            yield step.ok
            yield from step.failed
            if step.undoing is not None and step.undoing.ok is not None:
                yield step.undoing.ok

    def correlated(self, event: type[Message]) -> Iterator[Step[Any, Any]]:
        """The steps that this event may answer by its business key, without a label."""
        for step in self.steps.values():
            if step.correlate is not None and (event is step.ok or event in step.failed):
                yield step


def define(definition: Definition) -> Definition:
    """The definition, checked as a whole; UsageError says what is missing or contradictory."""
    where = f"The saga {definition.name}"
    if not _NAME.fullmatch(definition.name):
        raise UsageError(
            f"The saga name {definition.name!r} cannot be used: write the service's name, a dot "
            f'and a name in lower case, such as Saga("orders.fulfil_order", …).'
        )
    if definition.version < 1:
        raise UsageError(f"{where} has version={definition.version}: count up from 1.")
    if not definition.starts:
        raise UsageError(
            f"{where} is never started: decorate a function that takes the starting event and "
            f"returns the state with @….starts."
        )
    _check_state(definition.state, where)
    _check_flow(definition, where)
    _check_way_back(definition, where)
    _check_functions(definition, where)
    _check_messages(definition, where)
    _check_correlation(definition, where)
    return definition


def _check_state(state: type[BaseModel], where: str) -> None:
    """UsageError for a field that later steps would not have, because it is not stored."""
    for name in secret_fields(state):
        raise UsageError(
            f"{where} has the secret field {name} in its state, which pydantic writes as "
            f"asterisks: a later step would not have its value. Keep the secret elsewhere, and its "
            f"name in the state, or write a field_serializer that stores it."
        )
    for name, info in state.model_fields.items():
        if info.exclude:
            raise UsageError(
                f"{where} has the field {name} with exclude=True in its state, so that it is not "
                f"stored: a later step would not have its value. Take exclude=True away."
            )


def _check_flow(definition: Definition, where: str) -> None:
    steps = list(definition.flow.steps())
    for number, step in enumerate(steps):
        if step.saga != definition.name:
            raise UsageError(f"{where} has the step {step.name} of saga {step.saga} in its flow.")
        if step in steps[:number]:
            raise UsageError(
                f"{where} has the step {step.name} twice in its flow: a flow never comes back to a "
                f"step, and what is done again is another step."
            )
        if not _STEP.fullmatch(step.name):
            raise UsageError(
                f"{where} has a step of the name {step.name!r}, which cannot be used: write at "
                f"most 100 letters, digits and underscores."
            )
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where} has two steps of the name {name}: rename one.")
    pivots = [step for step in steps if step.is_pivot]
    if len(pivots) > 1:
        raise UsageError(
            f"{where} has {len(pivots)} pivots: a saga has at most one point of no return."
        )
    top = definition.flow.parts if isinstance(definition.flow, Series) else (definition.flow,)
    if pivots and pivots[0] not in top:
        raise UsageError(
            f"{where} has its pivot {pivots[0].name} beside other steps, which might still fail "
            f"after the point of no return: let it run alone, as in (a & b) >> pivot >> c."
        )


def _check_way_back(definition: Definition, where: str) -> None:
    for step in definition.steps.values():
        if step.name in definition.after_pivot:
            if step.failed or step.undoing or step.no_undo:
                raise UsageError(
                    f"{where} has the step {step.name} after its pivot, where the saga only goes "
                    f"forward: such a step can have neither failed= nor an undo. Move it before "
                    f"the pivot, or remove them."
                )
        elif step.is_pivot:
            if step.undoing or step.no_undo:
                raise UsageError(
                    f"{where} has an undo for its pivot {step.name}, which cannot be undone: "
                    f"remove the undo, or declare it with @….step instead of @….pivot."
                )
        elif step.command is not None and step.undoing is None and not step.no_undo:
            raise UsageError(
                f"{where} has no undo for its step {step.name}, so that its effect would be left "
                f"behind when a later step fails: decorate one with @{step.name}.undo, or say why "
                f'none is needed: no_undo="it only reads".'
            )


def _check_functions(definition: Definition, where: str) -> None:
    state = definition.state
    for function in definition.starts.values():
        _check_returns_state(function, state, where)
    for step in definition.steps.values():
        if step.command is not None:
            names = parameters_of(step.command, 1 if step.each is None else 2, where)
            _check_parameter(step.command, names[0], (state,), where)
        if step.undoing is not None:
            undo = step.undoing
            names = parameters_of(undo.command, 1 + undo.takes_item + undo.takes_reply, where)
            _check_parameter(undo.command, names[0], (state,), where)
            if undo.takes_reply:
                _check_parameter(undo.command, names[-1], (step.ok,), where)
        if step.fold is not None:
            names = parameters_of(step.fold, 2 + step.fold_takes_item, where)
            _check_parameter(step.fold, names[0], (state,), where)
            _check_parameter(step.fold, names[-1], (step.ok,), where)
            _check_returns_state(step.fold, state, where)
    if definition.undone is not no_message:
        names = parameters_of(definition.undone, 2, where)
        _check_parameter(definition.undone, names[0], (state,), where)
        _check_parameter(definition.undone, names[1], tuple(failures_of(definition)), where)
    if definition.completed is not no_message:
        [name] = parameters_of(definition.completed, 1, where)
        _check_parameter(definition.completed, name, (state,), where)


def failures_of(definition: Definition) -> Iterator[type[BaseModel]]:
    """Everything because of which this saga may be undone."""
    seen: set[type[BaseModel]] = set()
    for step in definition.steps.values():
        if step.name not in definition.after_pivot:
            for event in step.failed:
                if event not in seen:
                    seen.add(event)
                    yield event
    yield from OWN_FAILURES


def _check_parameter(
    function: Callable[..., Any], name: str, given: tuple[type[Any], ...], where: str
) -> None:
    """UsageError where the annotation of a parameter leaves out something that it is given."""
    hint = hints_of(function, where).get(name, Any)
    members = members_of(hint)
    if Any in members or object in members:
        return
    classes = tuple(each for each in members if isinstance(each, type))
    missing = [each.__name__ for each in given if not issubclass(each, classes)]
    if missing:
        spelled = " | ".join(getattr(each, "__name__", str(each)) for each in members)
        right = [each.__name__ for each in classes if any(issubclass(one, each) for one in given)]
        none = ["None"] if type(None) in members else []  # an undo may be called without a reply
        raise UsageError(
            f"{where}: {_name(function)} takes {name}: {spelled}, but it may be called with "
            f"{', '.join(missing)}. Take {' | '.join([*right, *_shortest(missing), *none])}."
        )


def _shortest(missing: list[str]) -> list[str]:
    """The missing types, with one name for all failures of EventMesh's own."""
    own = [each.__name__ for each in OWN_FAILURES]
    return [name for name in missing if name not in own] + (
        ["SagaFailure"] if any(name in own for name in missing) else []
    )


def _check_returns_state(function: Callable[..., Any], state: type[BaseModel], where: str) -> None:
    hint = hints_of(function, where).get("return", state)
    if not (isinstance(hint, type) and issubclass(hint, state)):
        raise UsageError(
            f"{where}: {_name(function)} returns {getattr(hint, '__name__', hint)}, but it must "
            f"return the saga's state, {state.__name__}."
        )


def _check_messages(definition: Definition, where: str) -> None:
    starting = {identity_of(model).name: model.__name__ for model in definition.starts}
    for step in definition.steps.values():
        undone = step.undoing.ok if step.undoing else None
        for model in (step.ok, *step.failed, *((undone,) if undone else ())):
            if identity_of(model).name in starting:
                raise UsageError(
                    f"{where} is started by {model.__name__}, which also answers its step "
                    f"{step.name}: every such reply would start another saga."
                )
        if step.ok in step.failed:
            raise UsageError(
                f"{where} has the step {step.name}, for which {step.ok.__name__} is both ok and "
                f"failed."
            )


def _check_correlation(definition: Definition, where: str) -> None:
    correlated = [step for step in definition.steps.values() if step.correlate is not None]
    if correlated and definition.key is None:
        raise UsageError(
            f"{where} has the step {correlated[0].name} with correlate=, which gives the key of a "
            f"saga, but its sagas have no keys: write Saga(…, key=lambda state: …) with the value "
            f"that an event has in common with its saga, such as an order's id."
        )
    for step in correlated:
        if step.each is not None:
            raise UsageError(
                f"{where} has the step {step.name} with each= and correlate=: a key alone does not "
                f"say which of its commands was answered."
            )
    for one, other in together(definition.flow):
        shared = {one.ok, *one.failed} & {other.ok, *other.failed}
        if shared and (one.correlate or other.correlate):
            raise UsageError(
                f"{where} may wait in {one.name} and in {other.name} at the same time, and "
                f"{min(each.__name__ for each in shared)} answers both: by its key alone, nobody "
                f"could tell which. Use two events."
            )


def together(part: Part[Any]) -> Iterator[tuple[Step[Any, Any], Step[Any, Any]]]:
    """The pairs of steps that may wait at the same time."""
    if isinstance(part, Parallel):
        for one, other in combinations(part.parts, 2):
            yield from ((a, b) for a in one.steps() for b in other.steps())
    if isinstance(part, Series | Parallel):
        for each in part.parts:
            yield from together(each)


def command_of(function: Callable[..., Any], where: str) -> type[Command]:
    """The command that a function says it returns; UsageError where it does not say so."""
    returned = hints_of(function, where).get("return")
    if not (isinstance(returned, type) and issubclass(returned, Command)):
        raise UsageError(
            f"{where}: {_name(function)} must say which command it sends: annotate its return "
            f"type with a Command."
        )
    return returned


def endings_of(function: Callable[..., Any], where: str) -> list[type[Message]]:
    """The messages that a function says it returns; None among them is left out."""
    hints = hints_of(function, where)
    if "return" not in hints:
        raise UsageError(
            f"{where}: {_name(function)} must say which message it returns, or None: annotate "
            f"its return type."
        )
    return [
        each
        for each in members_of(hints["return"])
        if isinstance(each, type) and issubclass(each, Message)
    ]


def no_message(*_: object) -> None:
    """Announces nothing: what a saga does at its end if its author has not said otherwise."""
    return


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
