"""The abstract twin of a saga: the same steps and flow, without the author's functions.

`verify` explores what the production transition does with the twin. Its commands and events have no
fields, and its functions do nothing, so one walk stands for all data. Where the real saga calls a
`when=` or `each=` for the first time, the twin does not know the answer: it raises `Undecided`, and
the exploration tries each answer in turn. How often a command is sent is bounded, because the third
attempt meets the same rules as the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from eventmesh.contracts.message import Command, Event, identity_of
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.retry import Retry, constant
from eventmesh.saga.definition import Definition
from eventmesh.saga.flow import UNTIL_PARKED, Parallel, Part, Series, Step, Undo

ATTEMPTS = 2
"""How often a command is sent at most, where the real saga sends it more often."""


class Undecided(BaseException):  # not an Exception: it must pass through the transition
    """The twin is asked for the first time whether, or how often, this step runs."""

    def __init__(self, step: str, options: tuple[int, ...]) -> None:
        self.step = step
        self.options = options
        super().__init__(step)


class CalledWithoutReply(BaseException):  # not an Exception: it must pass through the transition
    """An undo that needs its step's reply is called without one."""


class AuthorsMistake(Exception):
    """What a function of the saga's author raises."""


class TwinState(BaseModel):
    """Which answers of `when=` (0 or 1) and `each=` (a number of items) have been tried."""

    model_config = ConfigDict(frozen=True)

    choices: Mapping[str, int] = {}
    is_failing: bool = False
    """Whether the author's functions raise an error at present."""

    def call(self) -> None:
        """What each function of the twin does first."""
        if self.is_failing:
            raise AuthorsMistake


class Begin(Event, name="twin.begin", version=1):
    """Starts the twin, with the choices that its first steps need."""

    choices: Mapping[str, int] = {}
    is_failing: bool = False


class Ending(Event, name="twin.ending", version=1):
    """Announces its end."""


class Do(Command, name="twin.do", version=1):
    """Whatever its steps and undos send."""


@dataclass(frozen=True)
class Twin:
    """The twin, and its messages by name of the originals."""

    definition: Definition
    oks: Mapping[str, Event]
    """What answers each step when it was done."""
    refusals: Mapping[str, Event]
    """What answers it when it was not done, for the steps that can fail."""
    undos: Mapping[str, Event]
    """What answers its undo, for the undos that are answered."""


def twin_of(definition: Definition) -> Twin:
    """The abstract twin of this saga."""
    dummies: dict[type[Event], type[Event]] = {}

    def dummy(original: type[Event]) -> type[Event]:
        if original not in dummies:
            dummies[original] = _event(original)
        return dummies[original]

    steps = {step.name: _step(step, definition, dummy) for step in definition.flow.steps()}

    def mapped(part: Part[Any]) -> Part[Any]:
        match part:
            case Series(parts):
                return Series(tuple(mapped(each) for each in parts))
            case Parallel(parts):
                return Parallel(tuple(mapped(each) for each in parts))
            case Step():
                return steps[part.name]
        raise UsageError(f"{part!r} cannot be part of a flow.")

    twin = Definition(
        name=definition.name,
        version=1,
        state=TwinState,
        flow=mapped(definition.flow),
        starts={Begin: lambda event: TwinState(**event.model_dump())},
        completed=_ending,
        undone=_ending,
        publishes=(Do, Ending),
        key=definition.key and (lambda _state: "key"),
    )
    return Twin(
        twin,
        {step.name: step.ok() for step in steps.values()},
        {step.name: step.failed[0]() for step in steps.values() if step.failed},
        {
            step.name: step.undoing.ok()
            for step in steps.values()
            if step.undoing is not None and step.undoing.ok is not None
        },
    )


def _ending(state: TwinState, _failure: Any = None) -> Ending:
    state.call()
    return Ending()


def _event(original: type[Event]) -> type[Event]:
    """An event without fields, of the same name: records of two versions of a saga agree on it."""

    class Dummy(Event, name=identity_of(original).name, version=1):
        pass

    Dummy.__name__ = original.__name__
    return Dummy


def _step(step: Step[Any, Any], definition: Definition, dummy: Any) -> Step[Any, Any]:
    name = step.name

    def command(state: TwinState, *_item: int) -> Command:
        state.call()
        return Do()

    def when(state: TwinState) -> bool:
        state.call()
        return bool(_choice(state, name, (1, 0)))

    def each(state: TwinState) -> range:
        state.call()
        return range(_choice(state, name, (1, 2, 0)))

    retry = step.retry
    if retry is None and name in definition.after_pivot:
        retry = UNTIL_PARKED
    twin = Step[Any, Any](
        step.saga,
        name,
        None if step.command is None else command,
        ok=dummy(step.ok),
        failed=[dummy(each_failed) for each_failed in step.failed],
        timeout=step.timeout,
        retry=_bounded(retry),
        when=None if step.when is None else when,
        each=None if step.each is None else each,
        correlate=step.correlate and (lambda _event: "key"),
        no_undo=step.no_undo,
        is_pivot=step.is_pivot,
    )
    if step.undoing is not None:
        twin.undoing = _undo(step.undoing, dummy)
    return twin


def _undo(undo: Undo, dummy: Any) -> Undo:
    def command(state: TwinState, *item_and_reply: Any) -> Command:
        state.call()
        if undo.needs_reply and item_and_reply[-1] is None:
            raise CalledWithoutReply
        return Do()

    ok = None if undo.ok is None else dummy(undo.ok)
    retry = _bounded(undo.retry)
    assert retry is not None  # noqa: S101  # an undo always has one
    return replace(undo, command=command, ok=ok, retry=retry)


def _bounded(retry: Retry | None) -> Retry | None:
    if retry is None:
        return None
    return Retry(attempts=min(retry.attempts, ATTEMPTS), backoff=_LATER, jitter=0.0)


_LATER = constant(1)


def _choice(state: TwinState, step: str, options: tuple[int, ...]) -> int:
    if step not in state.choices:
        raise Undecided(step, options)
    return state.choices[step]
