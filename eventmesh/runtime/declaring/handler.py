"""A handler: a user's function, bound once, when it is declared, by its annotations."""

from __future__ import annotations

import inspect
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from eventmesh.contracts.message import Message, identity_of
from eventmesh.errors import UsageError
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.transports.base import Subscription
from eventmesh.wire.envelope import Envelope

Returned = Message | Sequence[Message] | None
Call = Callable[[Message, Envelope, Transaction | None], Awaitable[Returned]]
"""How the runtime calls a handler; a plain one gets no transaction."""


MAX_CONCURRENCY = 1_000
"""Lanes of one subscription in one process; each may hold a database connection."""


@dataclass(frozen=True, slots=True)
class Handler:
    """Everything that is known of a handler before the first message comes.

    A transactional handler runs inside a database transaction with inbox and outbox: its effects
    happen once. A plain one takes no transaction and returns nothing: it may run more than once.
    """

    subscription: Subscription
    models: Mapping[str, type[Message]]
    call: Call
    retry: Retry
    transactional: bool
    isolated: bool = False
    concurrency: int = 1
    timeout: float | None = None
    """Seconds that it may take for a message."""
    returns: frozenset[type[Message]] = frozenset()
    sources: tuple[str, ...] = ()
    """Where events may come from beside their owner; see `check_source`."""
    elsewhere: bool = False
    """Called by another program than a worker, which leaves its subscription alone."""


@dataclass(frozen=True, slots=True)
class _Binding:
    """What each parameter is filled with."""

    message: str
    transaction: tuple[str, ...]
    session: tuple[str, ...]
    envelope: tuple[str, ...]
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
) -> Handler:
    """The handler of this function; UsageError, with the parameter's name, when it cannot be one.

    `messages` narrows or repeats what the message parameter is annotated with.
    """
    where = f"The handler {getattr(function, '__module__', '?')}.{_name(function)}"
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
    return Handler(
        subscription=Subscription(subscription, tuple(by_name)),
        models=by_name,
        call=_make_call(function, binding),
        retry=retry,
        transactional=bool(binding.transaction or binding.session or binding.injected or returns),
        isolated=isolated,
        concurrency=checked_concurrency(concurrency, where),
        timeout=timeout,
        returns=returns,
        sources=checked_sources(sources, where),
    )


def checked_sources(sources: Sequence[str], where: str) -> tuple[str, ...]:
    """The sources, if each can be one; UsageError where they cannot."""
    if isinstance(sources, str):
        raise UsageError(f"{where} has sources={sources!r}: write a list, such as [{sources!r}].")
    for source in sources:
        if not isinstance(source, str) or not source:
            raise UsageError(
                f"{where} has the source {source!r}: write the CloudEvents source of whoever "
                f'publishes, such as "/bridge", or its beginning with a star, such as "/bridge/*".'
            )
    return tuple(sources)


def checked_concurrency(concurrency: int, where: str) -> int:
    """The number, if it can be one of lanes; UsageError where it cannot."""
    if not 1 <= concurrency <= MAX_CONCURRENCY:
        raise UsageError(
            f"{where} has concurrency={concurrency}: give the number of messages to be handled at "
            f"a time, from 1 to {MAX_CONCURRENCY}."
        )
    return concurrency


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
                f"message it handles, Transaction, AsyncSession, Envelope, or "
                f"Annotated[T, Depends(…)]."
            )
        if parameter.kind not in _BY_NAME:
            raise UsageError(
                f"{where} has the parameter {name!r}, which cannot be given by its name: write it "
                f"without / and *."
            )
        filling = _filling(hints[name])
        if filling is not None:
            found[filling].append(name)
        elif parameter.default is inspect.Parameter.empty:
            spelled = getattr(hints[name], "__name__", hints[name])
            raise UsageError(
                f"{where} has the parameter {name!r} of type {spelled}, which nothing can fill. "
                f"Use a message, Transaction, AsyncSession, Envelope, or Annotated[T, Depends(…)]."
            )
    if len(found["message"]) != 1:
        raise UsageError(
            f"{where} must have exactly one parameter annotated with a message (an Event or a "
            f"Command, or a union of them); it has {len(found['message'])}."
        )
    [message] = found["message"]
    return _Binding(
        message=message,
        transaction=tuple(found["transaction"]),
        session=tuple(found["session"]),
        envelope=tuple(found["envelope"]),
        injected=bool(found["injected"]),
        accepts=_message_types(hints[message]),
    )


_Filling = Literal["message", "transaction", "session", "envelope", "injected"]

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_FILLINGS: Mapping[type, _Filling] = {
    Transaction: "transaction",
    AsyncSession: "session",
    Envelope: "envelope",
}


def _filling(hint: Any) -> _Filling | None:
    """With what a parameter of this annotation is filled; None when with nothing we know."""
    if get_origin(hint) is Annotated:
        from fast_depends.dependencies import Dependant  # only where something is Annotated

        if any(isinstance(extra, Dependant) for extra in get_args(hint)[1:]):
            return "injected"
    if _message_types(hint):
        return "message"
    members = set(_members(hint)) - {type(None)}
    if len(members) == 1:  # `Transaction | None` is filled all the same
        [member] = members
        return _FILLINGS.get(member) if isinstance(member, type) else None
    return None


def _make_call(function: Callable[..., Awaitable[Returned]], binding: _Binding) -> Call:
    if binding.injected:
        return _make_injected_call(function, binding)

    async def call(
        message: Message, envelope: Envelope, transaction: Transaction | None
    ) -> Returned:
        return await function(**_arguments(binding, message, envelope, transaction))

    return call


def _make_injected_call(function: Callable[..., Awaitable[Returned]], binding: _Binding) -> Call:
    from fast_depends import inject  # only where a handler asks for it

    injected = inject(function, cast=False)

    async def call(
        message: Message, envelope: Envelope, transaction: Transaction | None
    ) -> Returned:
        # Dependencies are filled by name: these four are there for all of them.
        known = {
            "message": message,
            "envelope": envelope,
            "transaction": transaction,
            "session": None if transaction is None else transaction.session,
        }
        return await injected(**known | _arguments(binding, message, envelope, transaction))

    return call


def _arguments(
    binding: _Binding, message: Message, envelope: Envelope, transaction: Transaction | None
) -> dict[str, Any]:
    arguments: dict[str, Any] = {binding.message: message}
    for name in binding.envelope:
        arguments[name] = envelope
    if transaction is not None:
        for name in binding.transaction:
            arguments[name] = transaction
        for name in binding.session:
            arguments[name] = transaction.session
    return arguments


def _message_types(hint: Any) -> tuple[type[Message], ...]:
    """The messages that an annotation names, when it names nothing else."""
    members = _members(hint)
    if all(isinstance(member, type) and issubclass(member, Message) for member in members):
        return members
    return ()


def _members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type; without what else `Annotated` says of it."""
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


def _name(function: Callable[..., Any]) -> str:
    name: str = getattr(function, "__name__", repr(function))
    return name


def _spell(models: Sequence[type[Message]]) -> str:
    return " | ".join(model.__name__ for model in models)
