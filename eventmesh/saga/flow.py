"""The parts of a saga: steps, what undoes them, and the order between them.

A flow is built with two operators. `a >> b` runs b after a; `a & b` runs both side by side and goes
on when both are done. Any nesting of the two is allowed. Python binds `>>` tighter than `&`:

    (reserve & authorise) >> ship       reserve and authorise side by side, then ship
    reserve & authorise >> ship         reserve, beside (authorise, then ship)

Nothing in this module runs. `authoring` builds these values from decorated functions, `definition`
checks that they fit together, and `transition` reads them to decide what happens next.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import (
    Any,
    Generic,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event
from eventmesh.duration import Duration, seconds
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.retry import Retry, checked_retry, exponential

State = TypeVar("State", bound=BaseModel)
Ok = TypeVar("Ok", bound=Event)
Item = TypeVar("Item")
Made = TypeVar("Made", bound=Command)

UNTIL_PARKED = Retry(attempts=10, backoff=exponential("5s", cap="30m"), jitter=0.0)
"""How often a command is sent that must succeed (an undo, or a step after the pivot), before the
saga is parked for an operator: over about an hour and a half, besides the time-outs."""

UNDO_TIMEOUT = 60.0
"""Seconds that an undo waits for its answer before its command is sent again, unless it says
otherwise."""


class Part(Generic[State]):
    """A step, or steps joined by `>>` and `&`."""

    def __rshift__(self, following: Part[State]) -> Series[State]:
        """This, and then what follows."""
        if not isinstance(following, Part):
            return NotImplemented
        return Series((*_parts(self, Series), *_parts(following, Series)))

    def __and__(self, beside: Part[State]) -> Parallel[State]:
        """This and the other, side by side."""
        if not isinstance(beside, Part):
            return NotImplemented
        return Parallel((*_parts(self, Parallel), *_parts(beside, Parallel)))

    def steps(self) -> Iterator[Step[State, Any]]:
        """All steps, in the order in which they are written."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Series(Part[State]):
    """Parts that run one after another."""

    parts: tuple[Part[State], ...]

    def steps(self) -> Iterator[Step[State, Any]]:
        return (step for part in self.parts for step in part.steps())


@dataclass(frozen=True, eq=False)
class Parallel(Part[State]):
    """Parts that run side by side; what follows waits for all of them."""

    parts: tuple[Part[State], ...]

    def steps(self) -> Iterator[Step[State, Any]]:
        return (step for part in self.parts for step in part.steps())


def _parts(part: Part[State], kind: type[Series[Any]] | type[Parallel[Any]]) -> Any:
    """The parts that a part of this kind is merged with: `a >> b >> c` is one series of three."""
    return part.parts if isinstance(part, kind) else (part,)


@dataclass(frozen=True, eq=False)
class Undo:
    """Compensates a step. Without `ok` it counts as done as soon as its command is sent."""

    command: Callable[..., Command]
    ok: type[Event] | None
    timeout: float
    retry: Retry
    takes_reply: bool
    """Whether the function has a parameter for the step's reply."""
    needs_reply: bool
    """Whether it cannot be called without one, which nobody has after a time-out."""
    takes_item: bool = False
    """Whether the function has a parameter for the item of a step with `each=`."""


NOT_GIVEN: Any = object()
"""The time-out of a step whose author has not said how long an answer is waited for."""


class Step(Part[State], Generic[State, Ok]):
    """One command to one participant, or a wait for an event from outside, and what may answer it.

    Made by `Saga.step`, `Saga.pivot` and `Saga.wait`. A step is stored by its name, which is that
    of its function: a renamed one is another step, in which no running saga stands.
    """

    def __init__(
        self,
        saga: str,
        name: str,
        command: Callable[..., Command] | None,
        *,
        ok: type[Ok],
        failed: type[Event] | Sequence[type[Event]],
        timeout: Duration | None,
        retry: Retry | None = None,
        when: Callable[[State], bool] | None = None,
        each: Callable[[State], Sequence[Any]] | None = None,
        correlate: Callable[[Any], object] | None = None,
        no_undo: str = "",
        is_pivot: bool = False,
    ) -> None:
        self.saga = saga
        self.name = name
        if timeout is NOT_GIVEN:
            raise UsageError(
                f'{self} has no timeout=: write timeout="30s" for how long an answer is waited '
                f"for, or timeout=None to wait forever."
            )
        self.command = command
        """Makes the command; None where the step only waits."""
        self.ok = ok
        if isinstance(failed, type | str) or not isinstance(failed, Iterable):
            failed = (failed,)
        self.failed = tuple(failed)
        self.timeout = None if timeout is None else seconds(timeout)
        """Seconds to wait for an answer; None: forever."""
        self.retry = None if retry is None else checked_retry(retry, str(self))
        """How often the command is sent before the step counts as failed; None: once."""
        self.when = when
        self.each = each
        self.correlate = correlate
        self.no_undo = no_undo
        self.is_pivot = is_pivot
        self.undoing: Undo | None = None
        self.fold: Callable[..., State] | None = None
        """Takes the state, the item if `fold_takes_item`, and the ok reply."""
        self.fold_takes_item = False
        for option, models in (("ok", (ok,)), ("failed", self.failed)):
            for model in models:
                _check_event(model, f"{self} has {option}=")
        if self.timeout == 0:
            raise UsageError(
                f'{self} has timeout={timeout!r}: write how long it may take, such as "30s", or '
                f"None to wait forever."
            )

    def __str__(self) -> str:
        return f"The step {self.name} of saga {self.saga}"

    def __repr__(self) -> str:
        return f"<step {self.saga}/{self.name}>"

    def __call__(self, *arguments: Any) -> Command:
        """Call the decorated function, as a unit test does."""
        if self.command is None:
            raise UsageError(f"{self} only waits: it has no function that could be called.")
        return self.command(*arguments)

    def steps(self) -> Iterator[Step[State, Any]]:
        yield self

    def undo(
        self,
        *,
        ok: type[Event] | None = None,
        timeout: Duration = UNDO_TIMEOUT,
        retry: Retry = UNTIL_PARKED,
    ) -> UndoDecorator[State, Ok]:
        """Declare how this step is undone.

        The decorated function takes the state and the reply, `(state, reply: StockReserved)`. After
        a time-out there is no reply, so such an undo waits for the late one, if one comes. A
        function of `(state)` alone, or of `(state, reply: StockReserved | None)`, is called at once
        after a time-out: its participant must then accept the undo of something it never did.

        With `ok`, the saga waits for that event before it undoes the step before this one. The
        command is sent again when no answer comes within `timeout`, and when it is dead-lettered,
        as `retry` says; after its last attempt the saga is parked for an operator.
        """

        def declare(function: Any) -> Any:
            if self.undoing is not None:
                raise UsageError(f"{self} has two undos: remove one.")
            if self.command is None:
                raise UsageError(f"{self} only waits, so there is nothing to undo: remove it.")
            if self.no_undo:
                raise UsageError(f"{self} has an undo, but also no_undo=: remove one of the two.")
            require_plain(function, str(self))
            checked_retry(retry, f"The undo of {self}")
            takes_item, takes, needs = _form_of_undo(self, function)
            if ok is not None:
                _check_event(ok, f"The undo of {self} has ok=")
            within = seconds(timeout)
            if within == 0:
                raise UsageError(f"The undo of {self} has timeout=0: write how long it may take.")
            self.undoing = Undo(function, ok, within, retry, takes, needs, takes_item)
            return function

        return declare

    def done(self, function: Callable[[State, Ok], State]) -> Callable[[State, Ok], State]:
        """Decorate the function that takes the state and the ok reply, and returns the state with
        what the later steps need of the reply."""
        if self.fold is not None:
            raise UsageError(
                f"{self} has two functions for its reply: remove one @{self.name}.done."
            )
        require_plain(function, str(self))
        self.fold = function
        self.fold_takes_item = (
            self.each is not None and len(inspect.signature(function).parameters) == 3
        )
        return function


class StepOfItems(Step[State, Ok], Generic[State, Ok, Item]):
    """A step with `each=`, which sends a command for each item. Its undo and the function for its
    reply may take the item, too."""

    def undo(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # other functions undo items
        self,
        *,
        ok: type[Event] | None = None,
        timeout: Duration = UNDO_TIMEOUT,
        retry: Retry = UNTIL_PARKED,
    ) -> UndoOfItemDecorator[State, Item, Ok]:
        """Declare how an item of this step is undone; for the parameters see `Step.undo`.

        The decorated function takes the state, the item and the reply, `(state, item, reply:
        StockReserved)`; or only `(state, reply: StockReserved)`. After a time-out, such an undo
        waits for the late reply. A function of `(state, item)`, or of `(state, item, reply:
        StockReserved | None)`, is called at once. The list of items must stay as it is until then.
        """
        return cast(
            "UndoOfItemDecorator[State, Item, Ok]",
            super().undo(ok=ok, timeout=timeout, retry=retry),
        )

    @overload
    def done(self, function: Callable[[State, Ok], State]) -> Callable[[State, Ok], State]: ...

    @overload
    def done(
        self, function: Callable[[State, Item, Ok], State]
    ) -> Callable[[State, Item, Ok], State]: ...

    def done(self, function: Any) -> Any:
        """Decorate the function that takes the state, the item if it wants to, and the ok reply of
        this item, and returns the state with what the later steps need of the reply."""
        return super().done(function)


class UndoDecorator(Protocol[State, Ok]):
    """What `Step.undo` returns: the decorated function keeps its own type."""

    @overload
    def __call__(self, function: Callable[[State], Made], /) -> Callable[[State], Made]: ...

    @overload
    def __call__(
        self, function: Callable[[State, Ok | None], Made], /
    ) -> Callable[[State, Ok | None], Made]: ...

    @overload
    def __call__(self, function: Callable[[State, Ok], Made], /) -> Callable[[State, Ok], Made]: ...


class UndoOfItemDecorator(Protocol[State, Item, Ok]):
    """What `StepOfItems.undo` returns: the decorated function keeps its own type."""

    @overload
    def __call__(
        self, function: Callable[[State, Item], Made], /
    ) -> Callable[[State, Item], Made]: ...

    @overload
    def __call__(
        self, function: Callable[[State, Item, Ok | None], Made], /
    ) -> Callable[[State, Item, Ok | None], Made]: ...

    @overload
    def __call__(
        self, function: Callable[[State, Item, Ok], Made], /
    ) -> Callable[[State, Item, Ok], Made]: ...

    @overload
    def __call__(self, function: Callable[[State, Ok], Made], /) -> Callable[[State, Ok], Made]: ...


def hints_of(function: Callable[..., Any], where: str) -> dict[str, Any]:
    """The resolved annotations; UsageError where one cannot be resolved."""
    try:
        return get_type_hints(function)
    except (NameError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{where}: {_name(function)} has an annotation that cannot be resolved: {error}. "
            f"Import that name at the top of the module, not under TYPE_CHECKING."
        ) from None


def members_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def require_plain(function: Callable[..., Any], where: str) -> None:
    """UsageError for a coroutine function: a saga's functions are called without an await."""
    if inspect.iscoroutinefunction(function):
        raise UsageError(
            f"{where}: {_name(function)} is a coroutine function. The functions of a saga only "
            f"compute: write `def {_name(function)}(…)`, and do the rest in a handler."
        )


def parameters_of(function: Callable[..., Any], number: int, where: str) -> list[str]:
    """The names of the positional parameters, of which there must be `number`."""
    found = [
        each.name
        for each in inspect.signature(function).parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(found) != number:
        raise UsageError(
            f"{where}: {_name(function)} takes {len(found)} parameters, and it is called with "
            f"{number}."
        )
    return found


def _check_event(model: Any, where: str) -> None:
    if not (isinstance(model, type) and issubclass(model, Event)):
        name = getattr(model, "__name__", repr(model))
        raise UsageError(f"{where}{name}, which is not an event: write a class derived from Event.")


def _form_of_undo(step: Step[Any, Any], function: Callable[..., Any]) -> tuple[bool, bool, bool]:
    """Whether an undo takes the item of its step, whether it takes the reply, and whether it needs
    one."""
    where, number = str(step), len(inspect.signature(function).parameters)
    if step.each is None:
        if number == 1:
            return False, False, False
        names = parameters_of(function, 2, where)
        return False, True, _needs_reply(hints_of(function, where).get(names[1]))
    names = parameters_of(function, number if number < 3 else 3, where)
    hints = hints_of(function, where)
    if number == 3:
        return True, True, _needs_reply(hints.get(names[2]))
    if number == 2:
        members = members_of(hints.get(names[1], Any))
        if Any in members or object in members:
            raise UsageError(
                f"{where} has each=: in {_name(function)}, {names[1]!r} may be the item or the "
                f"reply: annotate it with the item's type, or with {step.ok.__name__}."
            )
        if not any(isinstance(each, type) and issubclass(each, Event) for each in members):
            return True, False, False
        if _needs_reply(hints[names[1]]):
            return False, True, True
    ok = step.ok.__name__
    raise UsageError(
        f"{where} has each=: {_name(function)} may be called without a reply, and then does not "
        f"know which item it undoes. Take the item: (state, item) or (state, item, reply: {ok} | "
        f"None); or only (state, reply: {ok}), which waits for the late reply."
    )


def _needs_reply(hint: Any) -> bool:
    return type(None) not in members_of(hint)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
