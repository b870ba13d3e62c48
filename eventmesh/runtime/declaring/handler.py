"""A handler: a user's function, bound once, when it is declared, by its annotations.

The annotations say which messages it takes, whether one at a time or as a list (a batch handler),
what else it is given, and what it may publish by returning it:

    async def book(event: OrderPlaced, tx: Transaction) -> Booked         one message a call
    async def book(events: list[OrderPlaced], tx: Transaction) -> None    a batch a call

A parameter of type `Clock` is filled with the service's own clock, which a test can own; code that
takes it there has virtual time without any other help.

Binding turns such a function into calls of one shape, so that the code that runs handlers does not
know how they were written. Whatever cannot work is a UsageError here, before the first message.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from eventmesh.clock import Clock, SystemClock
from eventmesh.contracts.message import Command, Message, identity_of
from eventmesh.errors import UsageError
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.order import WithoutKey, order_of
from eventmesh.runtime.declaring.retry import Retry, checked_retry
from eventmesh.tracing.port import ConsumerTracing, Tracing
from eventmesh.transports.base import AfterDead, Subscription
from eventmesh.wire.envelope import Envelope

Returned = Message | Sequence[Message] | None
Call = Callable[[Message, Envelope, Transaction | None], Awaitable[Returned]]
"""How a handler is called for one message; a plain one gets no transaction."""
BatchCall = Callable[
    [Sequence[Message], Sequence[Envelope], Transaction | None], Awaitable[Returned]
]
"""How a batch handler is called for several messages, which are given with their envelopes."""

HANDLERS_CLOCK: ContextVar[Clock | None] = ContextVar("eventmesh_handlers_clock", default=None)
"""The clock that handlers called in this context are given."""

MAX_CONCURRENCY = 1_000
"""Lanes of one subscription in one process; each may hold a database connection."""


@dataclass(frozen=True, slots=True)
class Handler:
    """Everything that is known of a handler before the first message comes.

    A transactional handler runs inside a database transaction with inbox and outbox: its effects
    happen once. A plain one takes no transaction and returns nothing: it may run more than once.
    A batch handler has `call_batch`; its `call` gives it a list of one.
    """

    subscription: Subscription
    models: Mapping[str, type[Message]]
    call: Call
    retry: Retry
    transactional: bool
    call_batch: BatchCall | None = None
    isolated: bool = False
    is_paced: bool = True
    """Whether it gets fewer messages at a time when it is slow. Not where what it does for each of
    them is little, and its statements are shared by all: large groups are best then."""
    concurrency: int = 1
    timeout: float | None = None
    """Seconds that one call of it may take."""
    returns: frozenset[type[Message]] = frozenset()
    sources: tuple[str, ...] = ()
    """Sources that may publish events besides their owner; see `check_source`."""
    elsewhere: bool = False
    """Whether another program than a worker calls it, such as a FastStream app."""
    function: Callable[..., Any] | None = None
    """The user's function, for who describes the handler; None where it is EventMesh's own."""

    def traced_by(self, tracing: Tracing) -> ConsumerTracing:
        """What records the messages of one of its lanes."""
        commands = [name for name, model in self.models.items() if issubclass(model, Command)]
        return tracing.consumer(self.subscription.name, self.subscription.messages, commands)

    def messages_in(self, returned: object) -> Sequence[Message]:
        """The messages in what the handler returned, which its transaction publishes; UsageError
        when it is anything else, or nobody would publish them."""
        messages = _messages(returned)
        if messages and not self.transactional:
            raise UsageError(
                f"the handler of {self.subscription.name} returned a message without a return "
                f"annotation that declares it"
            )
        return messages


@dataclass(frozen=True, slots=True)
class _Binding:
    """What each parameter is filled with."""

    message: str
    is_batch: bool
    """Whether the messages, and the envelopes, are given as lists."""
    transaction: tuple[str, ...]
    session: tuple[str, ...]
    envelope: tuple[str, ...]
    clock: tuple[str, ...]
    injected: bool
    accepts: tuple[type[Message], ...]


def bind(
    function: Callable[..., Awaitable[Returned]],
    messages: Sequence[type[Message]],
    *,
    subscription: str,
    retry: Retry,
    isolated: bool = False,
    concurrency: int = 1,
    timeout: float | None = None,
    sources: Sequence[str] = (),
    ordered: bool = False,
    partitions: int | None = None,
    after_dead: AfterDead | None = None,
    without_key: WithoutKey | None = None,
) -> Handler:
    """The handler of this function; UsageError, with the parameter's name, when it cannot be one.

    `messages` narrows or repeats what the message parameter is annotated with.
    """
    where = f"The handler {getattr(function, '__module__', '?')}.{_name(function)}"
    if inspect.isasyncgenfunction(function):
        raise UsageError(
            f"{where} is an async generator: return several messages as a list instead of yielding "
            f"them."
        )
    if not inspect.iscoroutinefunction(function):
        raise UsageError(
            f"{where} is not a coroutine function: write `async def {_name(function)}(…)`."
        )
    hints = _hints(function, where)
    binding = _bind_parameters(function, hints, where)
    models = tuple(messages) or binding.accepts
    for model in models:
        if model not in binding.accepts:
            raise UsageError(
                f"{where} subscribes to {model.__name__}, but its parameter {binding.message!r} is "
                f"annotated with {_spell(binding.accepts)}."
            )
    returns = _returned_messages(hints.get("return"), where)
    by_name = {identity_of(model).name: model for model in models}
    if len(by_name) < len(set(models)):
        raise UsageError(
            f"{where} takes two models of one message: {_spell(models)}. Keep the one that reads "
            f"what it needs."
        )
    if not isinstance(isolated, bool):
        raise UsageError(f"{where} has isolated={isolated!r}: write True or False.")
    order = order_of(
        where,
        models,
        ordered=ordered,
        partitions=partitions,
        after_dead=after_dead,
        without_key=without_key,
    )
    call_batch = _make_batch_call(function, binding) if binding.is_batch else None
    call = _make_call(function, binding) if call_batch is None else _make_call_of_one(call_batch)
    return Handler(
        subscription=Subscription(subscription, tuple(by_name), order),
        models=by_name,
        call=call,
        call_batch=call_batch,
        retry=checked_retry(retry, where),
        transactional=bool(binding.transaction or binding.session or binding.injected or returns),
        isolated=isolated,
        concurrency=checked_concurrency(concurrency, where),
        timeout=timeout,
        returns=returns,
        sources=checked_sources(sources, where),
        function=function,
    )


def checked_sources(sources: Sequence[str], where: str) -> tuple[str, ...]:
    """The sources; UsageError for one that cannot be a source."""
    if isinstance(sources, str) or not isinstance(sources, Iterable):
        raise UsageError(f"{where} has sources={sources!r}: write a list, such as [{sources!r}].")
    for source in sources:
        if not isinstance(source, str) or not source:
            raise UsageError(
                f"{where} has the source {source!r}: write the CloudEvents source of whoever "
                f'publishes, such as "/bridge", or a prefix with a star, such as "/bridge/*".'
            )
    return tuple(sources)


def checked_concurrency(concurrency: int, where: str) -> int:
    """The number of lanes; UsageError for one that is out of range."""
    if not _is_int(concurrency) or not 1 <= concurrency <= MAX_CONCURRENCY:
        raise UsageError(
            f"{where} has concurrency={concurrency!r}: give the number of messages to be handled "
            f"at a time, from 1 to {MAX_CONCURRENCY}."
        )
    return concurrency


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _hints(function: Callable[..., Any], where: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{where} has an annotation that cannot be resolved: {error}. Import that name at the "
            f"top of the module, not under TYPE_CHECKING."
        ) from None


def _bind_parameters(
    function: Callable[..., Any], hints: Mapping[str, Any], where: str
) -> _Binding:
    found: dict[str, list[str]] = {filling: [] for filling in get_args(_Filling)}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in hints:
            raise UsageError(
                f"{where} has no annotation on its parameter {name!r}. Annotate it with the "
                f"message it handles, or a list of them, Transaction, AsyncSession, Envelope, "
                f"Clock, or Annotated[T, Depends(…)]."
            )
        if parameter.kind not in _BY_NAME:
            raise UsageError(
                f"{where} has the parameter {name!r}, which cannot be given by its name: write it "
                f"without / and *."
            )
        if type(parameter.default).__name__ in _DEPENDENCIES:
            raise UsageError(
                f"{where} has a dependency as the default of its parameter {name!r}: write "
                f"{name}: Annotated[{_type_name(hints[name])}, Depends(…)], with eventmesh.Depends."
            )
        filling = _filling(hints[name])
        if filling is not None:
            found[filling].append(name)
        elif written := _list_of_messages_written_otherwise(hints[name]):
            raise UsageError(
                f"{where} has the parameter {name!r} of type {_type_name(hints[name])}: a handler "
                f"that takes several messages at once takes them as {written}."
            )
        elif parameter.default is inspect.Parameter.empty:
            raise UsageError(
                f"{where} has the parameter {name!r} of type {_type_name(hints[name])}, which "
                f"nothing can fill. Use a message, a list of messages, Transaction, AsyncSession, "
                f"Envelope, Clock, or Annotated[T, Depends(…)]."
            )
    messages = found["message"] + found["messages"]
    if len(messages) != 1:
        raise UsageError(
            f"{where} must have exactly one parameter annotated with a message (an Event or a "
            f"Command, or a union of them) or with a list of them; it has {len(messages)}."
        )
    is_batch = bool(found["messages"])
    if wrong := found["envelope" if is_batch else "envelopes"]:
        one, several = "Envelope", "list[Envelope]"
        raise UsageError(
            f"{where} takes {'a list of messages' if is_batch else 'one message'}, so its "
            f"parameter {wrong[0]!r} must be annotated with {several if is_batch else one}."
        )
    for name, owner in _with_dependencies(function, hints):
        if name in _given_to_dependencies(is_batch):
            raise UsageError(
                f"{where} would not get what Depends(…) makes for the parameter {name!r} of "
                f"{_name(owner)}: EventMesh fills that name itself. Rename the parameter."
            )
    hint = hints[messages[0]]
    return _Binding(
        message=messages[0],
        is_batch=is_batch,
        transaction=tuple(found["transaction"]),
        session=tuple(found["session"]),
        envelope=tuple(found["envelopes" if is_batch else "envelope"]),
        clock=tuple(found["clock"]),
        injected=bool(found["injected"]),
        accepts=_message_types(_item_of_list(hint) if is_batch else hint),
    )


def _with_dependencies(
    function: Callable[..., Any], hints: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The parameters that a dependency is made for, each with its function: those of this function,
    and of its dependencies."""
    for name, hint in hints.items():
        dependency = _dependency_in(hint)
        if dependency is not None:
            yield name, function
            try:
                further = get_type_hints(dependency, include_extras=True)
            except (NameError, AttributeError, TypeError):
                continue  # its parameters are filled by their names alone
            yield from _with_dependencies(dependency, further)


def _given_to_dependencies(is_batch: bool) -> tuple[str, str, str, str]:
    """The names by which parameters of dependencies are filled: with the messages, the envelopes,
    the transaction and the session."""
    if is_batch:
        return "messages", "envelopes", "transaction", "session"
    return "message", "envelope", "transaction", "session"


_Filling = Literal[
    "message", "messages", "transaction", "session", "envelope", "envelopes", "clock", "injected"
]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_DEPENDENCIES = ("Dependant", "Depends")
"""The classes of what `Depends` makes, here and in FastAPI, neither of which is imported for it."""
_FILLINGS: Mapping[type, _Filling] = {
    Transaction: "transaction",
    AsyncSession: "session",
    Envelope: "envelope",
    Clock: "clock",
}


def _filling(hint: Any) -> _Filling | None:
    """What a parameter with this annotation is filled with; None when nothing can fill it."""
    if _dependency_in(hint) is not None:
        return "injected"
    if _message_types(hint):
        return "message"
    if _message_types(_item_of_list(hint)):
        return "messages"
    if _item_of_list(hint) is Envelope:
        return "envelopes"
    members = set(_members(hint)) - {type(None)}
    if len(members) == 1:  # `Transaction | None` is filled all the same
        [member] = members
        return _FILLINGS.get(member) if isinstance(member, type) else None
    return None


def _dependency_in(hint: Any) -> Callable[..., Any] | None:
    """The function in the `Depends` of an annotation; None without one."""
    if get_origin(hint) is Annotated:
        from fast_depends.dependencies import Dependant  # only where something is Annotated

        for extra in get_args(hint)[1:]:
            if isinstance(extra, Dependant):
                function: Callable[..., Any] = extra.dependency
                return function
    return None


def _make_batch_call(function: Callable[..., Awaitable[Returned]], binding: _Binding) -> BatchCall:
    fill = _make_call(function, binding)

    def call(
        messages: Sequence[Message],
        envelopes: Sequence[Envelope],
        transaction: Transaction | None,
    ) -> Awaitable[Returned]:
        # Lists of the handler's own, which it may change.
        return fill(list(messages), list(envelopes), transaction)

    return call


def _make_call_of_one(call_batch: BatchCall) -> Call:
    def call(
        message: Message, envelope: Envelope, transaction: Transaction | None
    ) -> Awaitable[Returned]:
        return call_batch((message,), (envelope,), transaction)

    return call


def _make_call(
    function: Callable[..., Awaitable[Returned]], binding: _Binding
) -> Callable[[Any, Any, Transaction | None], Awaitable[Returned]]:
    """Calls the function with its parameters filled: by one message and its envelope, or by lists
    of them."""

    def arguments(taken: Any, described: Any, transaction: Transaction | None) -> dict[str, Any]:
        filled: dict[str, Any] = {binding.message: taken}
        for name in binding.envelope:
            filled[name] = described
        for name in binding.clock:
            filled[name] = HANDLERS_CLOCK.get() or SystemClock()
        if transaction is not None:
            for name in binding.transaction:
                filled[name] = transaction
            for name in binding.session:
                filled[name] = transaction.session
        return filled

    if not binding.injected:
        return lambda taken, described, transaction: function(
            **arguments(taken, described, transaction)
        )

    from fast_depends import inject  # only where a handler asks for it

    injected = inject(function, cast=False)
    given = _given_to_dependencies(binding.is_batch)

    def call(taken: Any, described: Any, transaction: Transaction | None) -> Awaitable[Returned]:
        session = None if transaction is None else transaction.session
        known = zip(given, (taken, described, transaction, session), strict=True)
        return injected(**dict(known) | arguments(taken, described, transaction))

    return call


def messages_taken(function: Callable[..., Any]) -> tuple[type[Message], ...]:
    """The messages that a parameter of the function is annotated with, one or a list of them; empty
    where it has none, or its annotations cannot be resolved."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception:  # noqa: BLE001  # annotations are code of the user's, and may raise anything
        return ()
    hints.pop("return", None)
    found = [_message_types(hint) or _message_types(_item_of_list(hint)) for hint in hints.values()]
    return next(filter(None, found), ())


def takes_list_of_messages(hint: Any) -> bool:
    """Whether an annotation makes its function a batch handler."""
    return bool(_message_types(_item_of_list(hint)))


def _item_of_list(hint: Any) -> Any:
    """What a list holds by its annotation; None for what is not annotated as a list."""
    if get_origin(hint) is Annotated:
        return _item_of_list(get_args(hint)[0])
    return get_args(hint)[0] if get_origin(hint) is list else None


def _list_of_messages_written_otherwise(hint: Any) -> str:
    """How to write an annotation that names several messages at once, but not as a list: a
    Sequence[M], a tuple[M, ...], a list[M] | list[N] or a list[M] | None. Empty for all others."""
    models: list[type[Message]] = []
    for member in set(_members(hint)) - {type(None)}:
        origin, items = get_origin(member), [it for it in get_args(member) if it is not Ellipsis]
        is_collection = isinstance(origin, type) and issubclass(origin, Iterable)
        if not is_collection or not items or not all(map(_message_types, items)):
            return ""
        models += [model for item in items for model in _message_types(item)]
    return f"list[{_spell(sorted(set(models), key=lambda model: model.__name__))}]" * bool(models)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def _message_types(hint: Any) -> tuple[type[Message], ...]:
    """The messages that an annotation names; empty when it names anything else, too."""
    members = _members(hint)
    if all(isinstance(member, type) and issubclass(member, Message) for member in members):
        return members
    return ()


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type, without the metadata of `Annotated`."""
    if get_origin(hint) is Annotated:
        return _members(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _returned_messages(hint: Any, where: str) -> frozenset[type[Message]]:
    """The messages that a return annotation declares: M, M | None, list[M], tuple[M, …]."""
    if hint is None or hint is type(None) or hint is Ellipsis:
        return frozenset()
    if isinstance(hint, type) and issubclass(hint, Message):
        return frozenset([hint])
    arguments = get_args(hint)
    if not arguments:
        raise UsageError(
            f"{where} is annotated to return {getattr(hint, '__name__', hint)}; a handler returns "
            f"messages, or nothing."
        )
    return frozenset().union(*(_returned_messages(argument, where) for argument in arguments))


def _messages(returned: object) -> Sequence[Message]:
    """The messages in what a handler returned; UsageError when it is anything else."""
    match returned:
        case None:
            return ()
        case Message():
            return (returned,)
        case type():
            others = [f"the class {returned.__name__}"]
        case Iterable() if not isinstance(returned, str | bytes | Mapping):
            messages = tuple(returned)
            others = sorted({type(it).__name__ for it in messages if not isinstance(it, Message)})
            if not others:
                return messages
        case _:
            others = [type(returned).__name__]
    raise UsageError(
        f"it returned {' and '.join(others)}, and a handler returns an Event or a Command, several "
        f"of them as a list, or None"
    )


def _name(function: Callable[..., Any]) -> str:
    name: str = getattr(function, "__name__", repr(function))
    return name


def _spell(models: Sequence[type[Message]]) -> str:
    return " | ".join(model.__name__ for model in models)
