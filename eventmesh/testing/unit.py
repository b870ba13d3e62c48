"""Call one handler in a test, as a function, and see what it publishes. No broker, no worker.

    result = await handle(capture, CapturePayment(order_id=order, amount=10), session=session)
    assert result.published(PaymentCaptured) == [PaymentCaptured(order_id=order, amount=10)]

The handler is called as a worker calls it: the message is written and read by the handler's own
model, its parameters are filled, dependencies among them, and what it publishes is checked against
what its service declares. What it raises is raised: `Reject`, to begin with. What a worker does
around it is left out: inbox, retries, groups, time-outs; the fixture `mesh` has all of that.

The session is yours, on whatever database you like, and so is its transaction: what the handler
changed has been flushed when `handle` returns, and is committed or rolled back by you.

The steps and undos of a saga are plain functions that return a command. Call them as such.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, NoReturn, TypeVar, cast

from eventmesh.clock import Clock
from eventmesh.contracts.message import Command, Event, Message, check_message, identity_of
from eventmesh.errors import UsageError
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.persistence.unit_of_work import PendingMessages
from eventmesh.runtime.consuming.delivery import check_source
from eventmesh.runtime.declaring.handler import HANDLERS_CLOCK, Handler
from eventmesh.runtime.declaring.reaction import Reaction
from eventmesh.runtime.declaring.service import DeclaredService, Handling
from eventmesh.saga.flow import Step
from eventmesh.wire.envelope import Envelope, check_envelope, open_envelope, seal

M = TypeVar("M", bound=Message)
E = TypeVar("E", bound=Event)
C = TypeVar("C", bound=Command)


@dataclass(frozen=True, slots=True)
class Delayed(Generic[M]):
    """A message that is to be published later."""

    message: M
    delay: timedelta


@dataclass(frozen=True, slots=True)
class Handled:
    """What came of one call of a handler."""

    returned: Any
    """What the function returned. Messages in it are among those published."""
    outgoing: tuple[Outgoing, ...]
    """Everything it published and sent, in order, as it would be in the outbox: with envelopes,
    whose attributes tell cause and correlation."""

    def published(self, event: type[E]) -> list[E]:
        """The events of this kind that it published, with or without a delay, read by this model:
        the service's own or that of a subscriber."""
        if issubclass(event, Command):
            raise UsageError(f"{event.__name__} is a command: write sent(…) instead.")
        return [message for message, _ in self._of(event)]

    def sent(self, command: type[C]) -> list[C]:
        """The commands of this kind that it sent, as `published`."""
        if issubclass(command, Event):
            raise UsageError(
                f"{command.__name__} is an event: write published({command.__name__})."
            )
        return [message for message, _ in self._of(command)]

    def delayed(self, message: type[M]) -> list[Delayed[M]]:
        """Those of these messages that have a delay."""
        return [
            Delayed(each, timedelta(seconds=delay)) for each, delay in self._of(message) if delay
        ]

    def _of(self, model: type[M]) -> list[tuple[M, float]]:
        name = identity_of(model).name
        return [
            (cast(M, open_envelope(each.envelope, model)), each.delay)
            for each in self.outgoing
            if each.envelope.name == name
        ]


async def handle(
    function: Callable[..., Any] | Reaction[Any, Any, Any],
    message: Message | Envelope | Sequence[Message | Envelope],
    *recorded: Any,
    session: AsyncSession | None = None,
    service: DeclaredService | None = None,
    clock: Clock | None = None,
) -> Handled:
    """Call a handler or a reaction of a service with a message, and return what came of it.

    A batch handler takes a list of messages. The undo of a reaction takes what the reaction
    returned as a further argument: `handle(take_back, OrderCancelled(…), points)`. An `Envelope`
    instead of a message is delivered as it is. `session` is what the handler works with, if it uses
    one. The service is looked for in the module of the function; give `service` where it is not
    there. `clock` is what `tx.now()` tells and a handler that takes a `Clock` is given, by default
    the service's.

    Raises what the handler raises; UnreadableMessage where the handler's model cannot read the
    message; UndeclaredMessage and UsageError as a worker does.
    """
    called = _find(function, service)
    own, handler = called.service, called.handler
    given = list(message) if isinstance(message, list | tuple) else [cast(Any, message)]
    if isinstance(message, list | tuple) and (handler.call_batch is None or called.is_reaction):
        raise UsageError(f"{called} takes one message at a time: call it with one, not a list.")
    if not given:
        raise UsageError(f"{called} was called with an empty list; a worker never does that.")
    clock = clock or own.clock
    sender = Sender(own.name, own.registry, clock, own.settings.max_message_bytes)
    envelopes = [_delivered(each, clock) for each in given]
    messages = [called.read(each) for each in envelopes]
    unit = _Unit(session, sender, called)
    with unit.transaction(list(zip(messages, envelopes, strict=True))) as tx:
        clock_before = HANDLERS_CLOCK.set(clock)
        try:
            with Handling(own.name) if handler.transactional else nullcontext():
                returned = await called.call(messages, envelopes, tx, recorded)
        finally:
            HANDLERS_CLOCK.reset(clock_before)
        if not called.is_reaction:  # what that returns is recorded
            for each in handler.messages_in(returned):
                tx.add(each)
    await unit.flush()
    return Handled(returned, tuple(unit.messages))


@dataclass(frozen=True, slots=True)
class _Called:
    """A function of a service, and how it is called."""

    service: DeclaredService
    handler: Handler
    takes: tuple[str, ...]
    """The names of the messages it takes."""
    react: Callable[..., Awaitable[Any]] | None = None
    """The function of a reaction, or its undo."""
    is_undo: bool = False

    def __str__(self) -> str:
        return f"The {'undo' if self.is_undo else 'handler'} of {self.handler.subscription.name}"

    @property
    def is_reaction(self) -> bool:
        return self.react is not None

    def read(self, envelope: Envelope) -> Message:
        """The message in the handler's own model. UsageError for one that it does not take."""
        if envelope.name not in self.takes:
            raise UsageError(f"{self} takes {', '.join(self.takes)}, and not {envelope.name}.")
        model = self.handler.models[envelope.name]
        check_envelope(envelope)
        check_source(envelope, model, self.handler.sources)
        return open_envelope(envelope, model)

    def call(
        self,
        messages: list[Message],
        envelopes: list[Envelope],
        tx: Transaction,
        recorded: Sequence[Any],
    ) -> Awaitable[Any]:
        if len(recorded) != self.is_undo:
            taken = "also what the reaction has returned" if self.is_undo else "the message alone"
            raise UsageError(f"{self} takes {taken}; {len(recorded)} further values were given.")
        if self.react is not None:
            return self.react(messages[0], *recorded, tx)
        given = tx if self.handler.transactional else None
        if self.handler.call_batch is not None:
            return self.handler.call_batch(messages, envelopes, given)
        return self.handler.call(messages[0], envelopes[0], given)


def _find(function: Any, service: DeclaredService | None) -> _Called:
    """What a service declared with this function. UsageError where none did, or several."""
    if isinstance(function, Step):
        raise UsageError(
            f"handle was given {function.name}, which is a step of a saga: call it as a function, "
            f"{function.name}(state), which returns its command."
        )
    plain = inspect.unwrap(function.function if isinstance(function, Reaction) else function)
    name = getattr(plain, "__name__", repr(plain))
    if service is not None:
        services = [service]
    else:
        values = getattr(plain, "__globals__", {}).values()
        services = list({id(it): it for it in values if isinstance(it, DeclaredService)}.values())
    found = [each for it in services for each in _declared(it, plain)]
    if not found:
        where = "its module" if service is None else f"service {service.name!r}"
        raise UsageError(
            f"handle was given {name}, which is not a handler of {where}: declare it with "
            f"@service.subscriber, or give the service that did: handle({name}, …, service=…)."
        )
    if len({each.service.name for each in found}) > 1:
        raise UsageError(
            f"{name} is a handler of several services: {', '.join(it.service.name for it in found)}"
            f". Give one: handle({name}, …, service=…)."
        )
    return found[0]


def _declared(service: DeclaredService, function: Any) -> Iterator[_Called]:
    for reaction in service.reactions:
        handler = service.handlers[reaction.subscription]
        event, undone_by = handler.models
        if inspect.unwrap(reaction.function) is function:
            yield _Called(service, handler, (event,), react=reaction.function)
        undo = reaction.undo_function
        if undo is not None and inspect.unwrap(undo) is function:
            yield _Called(service, handler, (undone_by,), react=undo, is_undo=True)
    for handler in service.handlers.values():
        is_own = handler.function is not None and inspect.unwrap(handler.function) is function
        if is_own and all(handler.subscription.name != it.subscription for it in service.reactions):
            yield _Called(service, handler, tuple(handler.models))


def _delivered(message: object, clock: Clock) -> Envelope:
    """The message as its owner, or any sender, would have sent it."""
    if isinstance(message, Envelope):
        return message
    check_message(message)
    assert isinstance(message, Message)  # noqa: S101  # as just checked
    return seal(message, source=identity_of(type(message)).owner, clock=clock)


class _Unit:
    """The transaction of one call: the caller's session, and what is published with it."""

    def __init__(self, session: AsyncSession | None, sender: Sender, called: _Called) -> None:
        if session is not None and not isinstance(session, AsyncSession):
            raise UsageError(
                f"handle was given the session {session!r}, which is not an AsyncSession."
            )
        self._session = session
        self._sender = sender
        self._called = called
        self._pending = PendingMessages()

    @property
    def messages(self) -> Sequence[Outgoing]:
        """What was published, without what a rolled back savepoint published."""
        return self._pending.messages

    @contextmanager
    def transaction(self, causes: Sequence[tuple[Message, Envelope]]) -> Iterator[Transaction]:
        session = self._session or cast(AsyncSession, _NoSession(self._called))
        transaction = Transaction(session, self._sender, self._keep, causes)
        if self._session is None:
            began = None
        else:
            plain = self._session.sync_session
            began = plain.get_transaction() or plain.begin()
        try:
            yield transaction
        finally:
            transaction.end()
        if self._session is not None and self._session.sync_session.get_transaction() is not began:
            raise UsageError(
                f"{self._called} ended the transaction, by a commit, a rollback or a close of the "
                f"session. A worker does not allow it, because other messages may share the "
                f"transaction. Raise an error to undo it, or use `async with "
                f"tx.session.begin_nested():` for a part that may fail."
            )

    async def flush(self) -> None:
        """Execute what the handler has added to the session."""
        if self._session is not None:
            await self._session.flush()

    def _keep(self, message: Outgoing) -> None:
        if self._session is None:
            self._pending.messages.append(message)
            return
        session = self._session.sync_session
        if session.in_nested_transaction():
            self._pending.listen(session)
        self._pending.add(session, message)


class _NoSession:
    """In the place of a session where none was given."""

    def __init__(self, called: _Called) -> None:
        self._called = called

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError(
            f"{self._called} uses its session: give it one of your own, as in "
            f"handle(…, session=session)."
        )
