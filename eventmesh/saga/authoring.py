"""How the author of a service writes a saga: one class, which is checked when it is defined.

    class FulfilOrder(Saga[OrderState], name="orders.fulfil_order", started_by=OrderPlaced):
        @staticmethod
        def begin(event: OrderPlaced) -> OrderState: ...

        @step(ok=StockReserved, failed=OutOfStock)
        def reserve(state: OrderState) -> ReserveStock: ...

        @reserve.undo(ok=StockReleased)
        def release(state: OrderState, reply: StockReserved) -> ReleaseStock: ...

        @pivot(ok=OrderShipped, failed=ShipmentRefused)
        def ship(state: OrderState) -> ShipOrder: ...

        flow = reserve >> ship

The steps of `flow` run in order. When one fails, the completed steps before it are undone in
reverse order. After the pivot there is no way back, so the steps behind it can neither fail nor be
undone. A saga that cannot work, such as one whose flow leaves out a step, raises UsageError when
its module is imported, not when its first message arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_type_hints

from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event, Message, identity_of
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.handler import checked_sources
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.coordinator import Coordinator
from eventmesh.saga.definition import Definition, Flow, MakeCommand, Step

State = TypeVar("State", bound=BaseModel)


def step(
    *, ok: type[Event], failed: type[Event] | Sequence[type[Event]] = ()
) -> Callable[[MakeCommand], Step]:
    """Declare a step: the function makes its command from the state, and `ok` or one of `failed`
    answers it."""
    return lambda function: Step(function, ok=ok, failed=_as_sequence(failed), is_pivot=False)


def pivot(
    *, ok: type[Event], failed: type[Event] | Sequence[type[Event]] = ()
) -> Callable[[MakeCommand], Step]:
    """Declare the step that is the point of no return: after its `ok` the saga only goes
    forward."""
    return lambda function: Step(function, ok=ok, failed=_as_sequence(failed), is_pivot=True)


class Saga(Generic[State]):
    """Derive from this to write a saga, and give the class to `service.include`.

    The class holds its steps (`@step`, `@pivot` and their `.undo`), `flow`, and up to three static
    methods. `begin(event)` returns the state. `completed(state)` and `undone(state, failure)`
    return the message that announces the end, or None; both may be left out. `sources` lists, as
    for `service.subscriber`, the sources whose replies are accepted besides the owner's, for
    example those of a bridge. UsageError says what is missing or contradictory.
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
    def extend(cls, service: Service) -> None:
        """Add this saga's coordinator to a service; `service.include` calls it."""
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
        raise UsageError(
            f"{where} has no begin: write @staticmethod def begin(event) that returns its state."
        )
    _check_steps(cls, flow, where)
    _check_messages(flow, started_by, where)
    # getattr, not __dict__: it returns a function with and without @staticmethod.
    functions = {
        key: getattr(cls, key) if cls.__dict__.get(key) else _no_message
        for key in ("completed", "undone")
    }
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
        begin=getattr(cls, "begin"),  # noqa: B009  # `cls` is any class
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
        raise UsageError(
            f"{where} has {len(pivots)} pivots: a saga has at most one point of no return."
        )
    after = in_flow[pivots[0] + 1 :] if pivots else []
    for each in after:
        if each.failed or each.undoing:
            raise UsageError(
                f"{where} has the step {each.name} after its pivot, where the saga only goes "
                f"forward: such a step can have neither failed= nor an undo. Move it before the "
                f"pivot, or remove them."
            )
    if pivots and in_flow[pivots[0]].undoing:
        raise UsageError(
            f"{where} has an undo for its pivot {in_flow[pivots[0]].name}, which cannot be undone: "
            f"remove the undo, or write @step instead of @pivot."
        )


def _check_messages(flow: Flow, started_by: type[Event], where: str) -> None:
    identity_of(started_by)
    for each in (each for stage in flow.stages for each in stage):
        undone = each.undoing.ok if each.undoing else None
        for model in (each.ok, *each.failed, *((undone,) if undone else ())):
            if identity_of(model).name == started_by.__identity__.name:
                raise UsageError(
                    f"{where} is started by {model.__name__}, which also answers its step "
                    f"{each.name}: every such reply would start another saga."
                )


def _annotated_command(function: Callable[..., Any], where: str) -> type[Command]:
    returned = get_type_hints(function).get("return")
    if not (isinstance(returned, type) and issubclass(returned, Command)):
        raise UsageError(
            f"{where}: {function.__name__} must say which command it sends: annotate its return "
            f"type with a Command."
        )
    return returned


def _annotated_ends(function: Callable[..., Any], where: str) -> list[type[Message]]:
    hints = get_type_hints(function)
    if "return" not in hints:
        raise UsageError(
            f"{where}: {function.__name__} must say which message it returns, or None: annotate "
            f"its return type."
        )
    members = get_args(hints["return"]) or (hints["return"],)
    return [each for each in members if isinstance(each, type) and issubclass(each, Message)]


def _state_type(cls: type, where: str) -> type[BaseModel]:
    for base in getattr(cls, "__orig_bases__", ()):
        for argument in get_args(base):
            if isinstance(argument, type) and issubclass(argument, BaseModel):
                return argument
    raise UsageError(
        f"{where} does not name the type of its state: derive it from Saga[SomeModel]."
    )


def _as_sequence(events: type[Event] | Sequence[type[Event]]) -> Sequence[type[Event]]:
    return (events,) if isinstance(events, type) else events


def _no_message(*_: object) -> None:
    return None
