"""How the author of a service writes a saga: functions of a module, decorated.

    fulfil = Saga("orders.fulfil_order", OrderState, version=1)

    @fulfil.starts
    def begin(event: OrderPlaced) -> OrderState: ...

    @fulfil.step(ok=StockReserved, failed=OutOfStock, timeout="30s")
    def reserve(state: OrderState) -> ReserveStock: ...

    @reserve.undo(ok=StockReleased)
    def release(state: OrderState, reply: StockReserved) -> ReleaseStock: ...

    @fulfil.pivot(ok=OrderShipped, failed=ShipmentRefused, timeout="2d")
    def ship(state: OrderState) -> ShipOrder: ...

    fulfil.flow(reserve >> ship)

When a step fails, the steps done before it are undone in reverse order. After the pivot there is no
way back, so what follows it can neither fail nor be undone. A saga that cannot work is a UsageError
when `service.include(fulfil)` is called, not when its first message arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Generic, TypeVar, cast, overload

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event, Message, why_not_older
from eventmesh.duration import Duration
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.handler import checked_sources
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.definition import (
    Definition,
    Migration,
    command_of,
    define,
    endings_of,
    no_message,
)
from eventmesh.saga.failures import SagaFailure
from eventmesh.saga.flow import (
    NOT_GIVEN,
    Part,
    Step,
    StepOfItems,
    hints_of,
    members_of,
    parameters_of,
    require_plain,
)

State = TypeVar("State", bound=BaseModel)
Ok = TypeVar("Ok", bound=Event)
Item = TypeVar("Item")
Starting = TypeVar("Starting", bound=Message)
Failure = TypeVar("Failure", bound=Event | SagaFailure)
End = TypeVar("End", bound=Message | None)

Begin = Callable[[Starting], State]
Failed = type[Event] | Sequence[type[Event]]
Method = TypeVar("Method", bound=Callable[..., Any])


def _asks_for_timeout(method: Method) -> Method:
    """Let a call without `timeout=` through to the step, which names itself in its error. Type
    checkers see the method as it is, in which `timeout` is required."""

    @wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        return method(*arguments, **{"timeout": NOT_GIVEN, **options})

    return cast("Method", call)


class Saga(Generic[State]):
    """A workflow across services; give it to `service.include`.

    `name` begins with the name of the service that owns it. `version` counts up when the flow
    changes while sagas run. `key` makes the business key from the state, by which events that carry
    no labels find their saga (`correlate=`): people's decisions, other languages, later
    transactions; two sagas of one key cannot run at the same time. Where it returns None, the saga
    has no key yet, and gets one once a reply has put it into the state. `sources` lists, as for
    `service.subscriber`, the sources whose replies are accepted besides their owners'.
    """

    def __init__(
        self,
        name: str,
        state: type[State],
        *,
        version: int = 1,
        key: Callable[[State], object] | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.version = version
        self._where = f"The saga {name}"
        self._state = state
        self._key = key
        self._sources = checked_sources(sources, self._where)
        self._starts: dict[type[Message], Callable[[Any], BaseModel]] = {}
        self._steps: list[Step[State, Any]] = []
        self._flow: Part[State] | None = None
        self._completed: Callable[[Any], Message | None] = no_message
        self._undone: Callable[[Any, Any], Message | None] = no_message
        self._migrations: dict[int, Migration] = {}
        self._definition: Definition | None = None

    def __repr__(self) -> str:
        return f"Saga({self.name!r}, version={self.version})"

    def starts(self, function: Begin[Starting, State]) -> Begin[Starting, State]:
        """Decorate the function that takes the starting message, an event or a command of this
        service, and returns the first state. A union of messages, or several functions, start it
        by each of them."""
        self._require_open(_name(function))
        require_plain(function, self._where)
        [name] = parameters_of(function, 1, self._where)
        models = members_of(hints_of(function, self._where).get(name))
        for model in models:
            if not (isinstance(model, type) and issubclass(model, Message)):
                raise UsageError(
                    f"{self._where}: {_name(function)} must say which message starts it: annotate "
                    f"its parameter {name!r} with an Event."
                )
            if model in self._starts:
                raise UsageError(f"{self._where} has two functions that {model.__name__} starts.")
            self._starts[model] = function
        return function

    @overload
    def step(
        self,
        *,
        ok: type[Ok],
        failed: Failed = (),
        timeout: Duration | None,
        retry: Retry | None = None,
        when: Callable[[State], bool] | None = None,
        correlate: Callable[[Any], object] | None = None,
        no_undo: str = "",
    ) -> Callable[[Callable[[State], Command]], Step[State, Ok]]: ...

    @overload
    def step(
        self,
        *,
        ok: type[Ok],
        failed: Failed = (),
        timeout: Duration | None,
        retry: Retry | None = None,
        when: Callable[[State], bool] | None = None,
        each: Callable[[State], Sequence[Item]],
        no_undo: str = "",
    ) -> Callable[[Callable[[State, Item], Command]], StepOfItems[State, Ok, Item]]: ...

    @_asks_for_timeout
    def step(
        self,
        *,
        ok: type[Ok],
        failed: Failed = (),
        timeout: Duration | None,
        retry: Retry | None = None,
        when: Callable[[State], bool] | None = None,
        each: Callable[[State], Sequence[Any]] | None = None,
        correlate: Callable[[Any], object] | None = None,
        no_undo: str = "",
    ) -> Callable[[Callable[..., Command]], Step[State, Ok]]:
        """Declare a step: the function makes its command from the state; `ok` or one of `failed`
        answers it.

        `timeout`: how long an answer is waited for; None waits forever. `retry`: how often the
        command is sent, after a failure, a time-out or a dead letter, before the step counts as
        failed; once by default. `when`: the step is skipped where this is false. `each`: one
        command for each item of a list in the state, which must stay as it is while the step runs;
        the function gets the item, too, and the step is done when all are answered; its undo must
        take the item, too, unless it takes the reply and waits for it. `correlate`:
        the key of the saga, from an answer that carries no label. `no_undo`: why the step needs no
        undo.
        """
        return self._declare_step(
            is_pivot=False,
            ok=ok,
            failed=failed,
            timeout=timeout,
            retry=retry,
            when=when,
            each=each,
            correlate=correlate,
            no_undo=no_undo,
        )

    @_asks_for_timeout
    def pivot(
        self,
        *,
        ok: type[Ok],
        failed: Failed = (),
        timeout: Duration | None,
        retry: Retry | None = None,
        correlate: Callable[[Any], object] | None = None,
    ) -> Callable[[Callable[[State], Command]], Step[State, Ok]]:
        """Declare the step that is the point of no return: after its `ok` the saga only goes
        forward. When it times out, nobody knows whether it was done, and nothing can undo it: the
        saga is parked for an operator. Parameters as of `step`."""
        return self._declare_step(
            is_pivot=True, ok=ok, failed=failed, timeout=timeout, retry=retry, correlate=correlate
        )

    @_asks_for_timeout
    def wait(
        self,
        name: str,
        *,
        ok: type[Ok],
        failed: Failed = (),
        timeout: Duration | None,
        correlate: Callable[[Any], object],
        when: Callable[[State], bool] | None = None,
    ) -> Step[State, Ok]:
        """A step that sends nothing: it waits for an event from outside, such as a person's
        decision. Parameters as of `step`; `correlate` gives the key of the saga that an event
        belongs to. An event that comes before its step has begun is kept for it."""
        self._require_open(f"the wait {name}")
        step = Step[State, Ok](
            self.name,
            name,
            None,
            ok=ok,
            failed=failed,
            timeout=timeout,
            when=when,
            correlate=correlate,
        )
        self._steps.append(step)
        return step

    def flow(self, flow: Part[State]) -> None:
        """Set the order of the steps: `first >> (these & beside_each_other) >> last`."""
        if self._flow is not None:
            raise UsageError(f"{self._where} has two flows: remove one.")
        if not isinstance(flow, Part):
            raise UsageError(
                f"{self._where} has the flow {flow!r}, which is not a step: write "
                f"….flow(first >> second >> third) with the decorated functions."
            )
        self._flow = flow

    def completed(self, function: Callable[[State], End]) -> Callable[[State], End]:
        """Decorate the function that returns the message which announces the end, or None."""
        self._require_open(_name(function))
        if self._completed is not no_message:
            raise UsageError(f"{self._where} has two functions for its completion: remove one.")
        require_plain(function, self._where)
        self._completed = function
        return function

    def undone(self, function: Callable[[State, Failure], End]) -> Callable[[State, Failure], End]:
        """Decorate the function that returns the message which announces that all was undone, or
        None. It takes the state and the failure: an event of some step's `failed`, or a
        SagaFailure."""
        self._require_open(_name(function))
        if self._undone is not no_message:
            raise UsageError(f"{self._where} has two functions for its undoing: remove one.")
        require_plain(function, self._where)
        self._undone = function
        return function

    def migrate(self, *, from_version: int) -> Callable[[Migration], Migration]:
        """Decorate the function that turns the state of an older version, as a dict of its JSON,
        into that of the next version. A running saga is migrated when its next message comes."""

        def declare(function: Migration) -> Migration:
            self._require_open(_name(function))
            if not 1 <= from_version < self.version:
                raise UsageError(
                    f"{self._where} has a migration from version {from_version}, "
                    f"{why_not_older(self.version, 'saga')}."
                )
            if from_version in self._migrations:
                raise UsageError(f"{self._where} has two migrations from version {from_version}.")
            self._migrations[from_version] = function
            return function

        return declare

    @property
    def definition(self) -> Definition:
        """The saga as data, checked; UsageError where its parts do not fit together."""
        if self._definition is None:
            self._definition = self._define()
        return self._definition

    def extend(self, service: Service) -> None:
        """Add this saga's coordinator to a service; `service.include` calls it."""
        Coordinator(self.definition).extend(service)

    def _require_open(self, part: str) -> None:
        """UsageError for a part that is declared too late to have an effect."""
        if self._definition is not None:
            raise UsageError(
                f"{self._where} was given to service.include before {part} was declared: call "
                f"service.include below all parts of the saga."
            )

    def _declare_step(
        self, *, is_pivot: bool, **options: Any
    ) -> Callable[[Callable[..., Command]], Step[State, Any]]:
        def declare(function: Callable[..., Command]) -> Step[State, Any]:
            name = _name(function)
            self._require_open(name)
            require_plain(function, self._where)
            kind = Step if options.get("each") is None else StepOfItems
            step: Step[State, Any] = kind(self.name, name, function, is_pivot=is_pivot, **options)
            self._steps.append(step)
            return step

        return declare

    def _define(self) -> Definition:
        where = self._where
        if self._flow is None:
            raise UsageError(f"{where} has no flow: write ….flow(first >> second >> third).")
        in_flow = set(self._flow.steps())
        if left_out := [step.name for step in self._steps if step not in in_flow]:
            raise UsageError(f"{where} leaves {', '.join(left_out)} out of its flow.")
        functions = [
            function
            for step in self._flow.steps()
            for function in (step.command, step.undoing.command if step.undoing else None)
            if function is not None
        ]
        publishes: list[type[Message]] = [command_of(function, where) for function in functions]
        for function in (self._completed, self._undone):
            if function is not no_message:
                publishes += endings_of(function, where)
        return define(
            Definition(
                name=self.name,
                version=self.version,
                state=self._state,
                flow=self._flow,
                starts=dict(self._starts),
                completed=self._completed,
                undone=self._undone,
                publishes=tuple(dict.fromkeys(publishes)),
                key=self._key,
                sources=self._sources,
                migrations=dict(self._migrations),
            )
        )


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))
