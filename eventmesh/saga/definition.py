"""How a saga is written: steps with their undos, a pivot, and the flow between them.

The class body is data. `Saga.__init_subclass__` checks it and keeps it as a `Definition`, which
the transition reads and which can be drawn or checked without running anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_type_hints, overload

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event, Message, identity_of
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.handler import checked_sources

State = TypeVar("State", bound=BaseModel)
MakeCommand = Callable[[Any], Command]
MakeUndo = Callable[[Any, Any], Command]

UNDO_SUFFIX = ":undo"


class Undo:
    """Takes back what a step has done. Without `ok` it counts as done once its command is sent."""

    def __init__(self, command: MakeUndo, ok: type[Event] | None) -> None:
        self.command = command
        self.ok = ok


class Step:
    """One command to one service, and the events that may answer it. Known by its name."""

    name: str

    def __init__(
        self,
        command: MakeCommand,
        *,
        ok: type[Event],
        failed: Sequence[type[Event]],
        is_pivot: bool,
    ) -> None:
        self.command = command
        self.ok = ok
        self.failed = tuple(failed)
        self.is_pivot = is_pivot
        self.undoing: Undo | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        # The first name is the step's; `flow = reserve` gives a lone step a second one.
        if not hasattr(self, "name"):
            self.name = name

    def __rshift__(self, following: Step | Flow) -> Flow:
        return Flow(((self,),)) >> following

    @overload
    def undo(self, function: MakeUndo) -> Undo: ...

    @overload
    def undo(self, *, ok: type[Event] | None = None) -> Callable[[MakeUndo], Undo]: ...

    def undo(
        self, function: MakeUndo | None = None, *, ok: type[Event] | None = None
    ) -> Undo | Callable[[MakeUndo], Undo]:
        """Declare how this step is undone: a function of the state and of the reply that the step
        got. With `ok`, the undo before it waits for that event."""

        def declare(undo: MakeUndo) -> Undo:
            if self.undoing is not None:
                raise UsageError(f"The step {self.command.__name__} has two undos: remove one.")
            self.undoing = Undo(undo, ok)
            return self.undoing

        return declare if function is None else declare(function)


@dataclass(frozen=True)
class Flow:
    """Steps in the order in which they are done: stages, each of steps that need no other order."""

    stages: tuple[tuple[Step, ...], ...]

    def __rshift__(self, following: Step | Flow) -> Flow:
        after = ((following,),) if isinstance(following, Step) else following.stages
        return Flow((*self.stages, *after))


def step(
    *, ok: type[Event], failed: type[Event] | Sequence[type[Event]] = ()
) -> Callable[[MakeCommand], Step]:
    """Declare a step: the function makes its command from the state; `ok` or one of `failed`
    answers it."""
    return lambda function: Step(function, ok=ok, failed=_several(failed), is_pivot=False)


def pivot(
    *, ok: type[Event], failed: type[Event] | Sequence[type[Event]] = ()
) -> Callable[[MakeCommand], Step]:
    """Declare the step after whose `ok` the saga only goes forward."""
    return lambda function: Step(function, ok=ok, failed=_several(failed), is_pivot=True)


@dataclass(frozen=True)
class Definition:
    """A checked saga."""

    name: str
    version: int
    started_by: type[Event]
    state: type[BaseModel]
    stages: tuple[tuple[Step, ...], ...]
    begin: Callable[[Any], BaseModel]
    completed: Callable[[Any], Message | None]
    undone: Callable[[Any, Any], Message | None]
    publishes: tuple[type[Message], ...]
    sources: tuple[str, ...] = ()

    @property
    def steps(self) -> Iterator[Step]:
        """All steps, in the order of the flow."""
        return (each for stage in self.stages for each in stage)

    def replies(self) -> Iterator[type[Event]]:
        """Every event that may answer a step or an undo."""
        for each in self.steps:
            yield each.ok
            yield from each.failed
            if each.undoing is not None and each.undoing.ok is not None:
                yield each.undoing.ok


class Saga(Generic[State]):
    """Derive from this to write a saga; give it to `service.include`.

    A class holds steps (`@step`, `@pivot`, their `.undo`), `flow`, and three functions without
    self: `begin(event)` makes the state; `completed(state)` and `undone(state, failure)` make the
    message that says how it ended, or None. `sources` is that of `service.subscriber`, for replies
    that come through a bridge. UsageError says what is missing or impossible.
    """

    definition: ClassVar[Definition]

    def __init_subclass__(
        cls,
        *,
        name: str,
        started_by: type[Event],
        version: int = 1,
        sources: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init_subclass__(**options)
        cls.definition = _define(cls, name, version, started_by, sources)

    @classmethod
    def extend(cls, service: Any) -> None:
        """Add the coordinator of this saga to a service: what `service.include` calls."""
        from eventmesh.saga.coordinator import Coordinator  # it runs what is defined here

        Coordinator(cls.definition).extend(service)


def _define(
    cls: type, name: str, version: int, started_by: type[Event], sources: Sequence[str]
) -> Definition:
    where = f"The saga {cls.__module__}.{cls.__qualname__}"
    flow = cls.__dict__.get("flow")
    if isinstance(flow, Step):
        flow = Flow(((flow,),))
    if not isinstance(flow, Flow):
        raise UsageError(f"{where} has no flow: write flow = first >> second >> third.")
    if "begin" not in cls.__dict__:
        raise UsageError(f"{where} has no begin: write def begin(event) -> its state.")
    _check_steps(cls, flow, where)
    _check_messages(flow, started_by, where)
    functions = {key: cls.__dict__.get(key) or _nothing for key in ("completed", "undone")}
    commands = [
        _annotated_command(function, where)
        for each in (each for stage in flow.stages for each in stage)
        for function in (each.command, each.undoing.command if each.undoing else None)
        if function is not None
    ]
    ends = [model for function in functions.values() for model in _annotated_ends(function, where)]
    return Definition(
        name=name,
        version=version,
        started_by=started_by,
        state=_state_type(cls, where),
        stages=flow.stages,
        begin=cls.__dict__["begin"],
        completed=functions["completed"],
        undone=functions["undone"],
        publishes=tuple(dict.fromkeys([*commands, *ends])),
        sources=checked_sources(sources, where),
    )


def _check_steps(cls: type, flow: Flow, where: str) -> None:
    in_flow = [each for stage in flow.stages for each in stage]
    declared = [each for each in cls.__dict__.values() if isinstance(each, Step)]
    left_out = [each.name for each in declared if each not in in_flow]
    if left_out:
        raise UsageError(f"{where} leaves {', '.join(left_out)} out of its flow.")
    if len(in_flow) != len(set(in_flow)):
        raise UsageError(f"{where} has a step twice in its flow.")
    pivots = [number for number, each in enumerate(in_flow) if each.is_pivot]
    if len(pivots) > 1:
        raise UsageError(f"{where} has {len(pivots)} pivots: there is one point of no return.")
    after = in_flow[pivots[0] + 1 :] if pivots else []
    for each in after:
        if each.failed or each.undoing:
            raise UsageError(
                f"{where} has the step {each.name} after its pivot, where it only goes forward: "
                f"such a step has no failed= and no undo. Move it before the pivot."
            )
    if pivots and in_flow[pivots[0]].undoing:
        raise UsageError(
            f"{where} has an undo for its pivot {in_flow[pivots[0]].name}, which cannot be taken "
            f"back: remove the undo, or write @step."
        )


def _check_messages(flow: Flow, started_by: type[Event], where: str) -> None:
    identity_of(started_by)
    for each in (each for stage in flow.stages for each in stage):
        undone = each.undoing.ok if each.undoing else None
        for model in (each.ok, *each.failed, *((undone,) if undone else ())):
            if identity_of(model).name == started_by.__identity__.name:
                raise UsageError(
                    f"{where} is started by {model.__name__}, which also answers its step "
                    f"{each.name}: every answer would start another saga."
                )


def _annotated_command(function: Callable[..., Any], where: str) -> type[Command]:
    returned = get_type_hints(function).get("return")
    if not (isinstance(returned, type) and issubclass(returned, Command)):
        raise UsageError(
            f"{where}: {function.__name__} must say which command it sends: annotate its return "
            f"with a Command."
        )
    return returned


def _annotated_ends(function: Callable[..., Any], where: str) -> list[type[Message]]:
    hints = get_type_hints(function)
    if "return" not in hints:
        raise UsageError(
            f"{where}: {function.__name__} must say which message it makes, or None: annotate its "
            f"return."
        )
    members = get_args(hints["return"]) or (hints["return"],)
    return [each for each in members if isinstance(each, type) and issubclass(each, Message)]


def _state_type(cls: type, where: str) -> type[BaseModel]:
    for base in getattr(cls, "__orig_bases__", ()):
        for argument in get_args(base):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                return argument
    raise UsageError(f"{where} does not say what its state is: derive it from Saga[SomeModel].")


def _several(events: type[Event] | Sequence[type[Event]]) -> Sequence[type[Event]]:
    return (events,) if isinstance(events, type) else events


def _nothing(*_: object) -> None:
    return None
