"""What a handler gets: the database session, and the messages to send if its changes commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.clock import Clock
from eventmesh.contracts.message import Command, Event, Message, check_message
from eventmesh.contracts.registry import Registry
from eventmesh.duration import Duration, seconds
from eventmesh.errors import UndeclaredMessage, UsageError
from eventmesh.persistence.outbox import Outgoing, Stored
from eventmesh.tracing.port import NO_TRACING, Tracing
from eventmesh.wire.envelope import Envelope, seal


@dataclass(frozen=True, slots=True)
class Sender:
    """Who publishes, and within which bounds: what every transaction of a service shares."""

    service: str
    registry: Registry
    clock: Clock
    max_bytes: int
    ordered: bool = False
    """Whether a transaction waits for those with messages of the same keys to end."""
    committed: Callable[[Sequence[Stored]], None] = lambda _: None
    """Called after each commit that put messages into the outbox, with those that surely are in it:
    not from an application's session, whose commit may only end a part of a transaction."""
    tracing: Tracing = NO_TRACING


class Transaction:
    """State and outgoing messages, committed together or not at all.

    `session` is an ordinary SQLAlchemy AsyncSession; it is begun and committed for you. Messages
    are buffered and written to the outbox right before the commit. Those published in a savepoint
    (`session.begin_nested()`) that is rolled back are dropped with it.
    """

    def __init__(
        self,
        session: AsyncSession,
        sender: Sender,
        keep: Callable[[Outgoing], None],
        causes: Sequence[tuple[Message, Envelope]] = (),
    ) -> None:
        self.session = session
        self._sender = sender
        self._keep = keep
        self._causes = {id(message): envelope for message, envelope in causes}
        self._has_ended = False

    def end(self) -> None:
        """Refuse further messages: nobody would store them."""
        self._has_ended = True

    @contextmanager
    def caused_by(self, message: Message) -> Iterator[Transaction]:
        """The same transaction, as the handler of this one message sees it: what is published with
        it has this message as its cause. Its use ends with the context."""
        own = Transaction(
            self.session, self._sender, self._keep, [(message, self._causes[id(message)])]
        )
        try:
            yield own
        finally:
            own.end()

    @contextmanager
    def all_or_none(self) -> Iterator[Transaction]:
        """The same transaction, for messages that belong together: if one of them cannot be
        published, so that the context ends by an error, none of them is."""
        kept: list[Outgoing] = []
        own = Transaction(self.session, self._sender, kept.append)
        own._causes = self._causes
        try:
            yield own
        finally:
            own.end()
        for message in kept:
            self._keep(message)

    def now(self) -> datetime:
        """The time by this process's clock."""
        return self._sender.clock.now()

    def publish(self, event: Event, *, delay: Duration = 0, cause: Message | None = None) -> None:
        """Publish an event of this service, after `delay` at the earliest.

        `cause` is the message because of which it is published: one of those that the handler was
        called with. It need only be given by a batch handler; without it, an event that several
        messages caused begins a correlation of its own.

        UndeclaredMessage when the service did not declare it; MessageTooLarge; UsageError.
        """
        check_message(event)
        if not isinstance(event, Event):
            raise UsageError(f"{_name(event)} is not an event: use send for a command.")
        self.add(event, delay=delay, cause=cause)

    def send(self, command: Command, *, delay: Duration = 0, cause: Message | None = None) -> None:
        """Send a command to its owner, after `delay` at the earliest. `cause`, and what it raises,
        as of `publish`."""
        check_message(command)
        if not isinstance(command, Command):
            raise UsageError(f"{_name(command)} is not a command: use publish for an event.")
        self.add(command, delay=delay, cause=cause)

    def add(
        self,
        message: Message,
        *,
        delay: Duration = 0,
        cause: Message | None = None,
        extensions: Mapping[str, str] | None = None,
    ) -> None:
        """Publish an event or send a command, with further CloudEvents attributes."""
        check_message(message)
        sender = self._sender
        if not sender.registry.publishes(type(message)):
            raise UndeclaredMessage(
                f"Service {sender.service!r} published {_name(message)} without declaring it. Add "
                f"service.publisher({type(message).__name__}), or name it in the handler's return "
                f"annotation."
            )
        caused_by = self._envelope_of(cause, message)
        envelope = seal(
            message,
            source=sender.service,
            clock=sender.clock,
            cause=caused_by,
            extensions=extensions,
            max_bytes=sender.max_bytes,
            version=sender.registry.written(type(message)),
        )
        if self._has_ended:
            raise UsageError(
                f"{envelope.name} was published with a transaction that has ended: publish "
                f"before the handler returns, or inside `async with service.transaction() as tx:`."
            )
        waits = seconds(delay)
        if extensions is None or "traceparent" not in extensions:
            one_of_several = caused_by if len(self._causes) > 1 else None
            envelope = sender.tracing.created(envelope, delay=waits, cause=one_of_several)
        self._keep(Outgoing(envelope, waits))

    def _envelope_of(self, cause: Message | None, effect: Message) -> Envelope | None:
        """The envelope of the message that caused this one; None where none did, or several."""
        if cause is not None:
            if id(cause) not in self._causes:
                raise UsageError(
                    f"{_name(effect)} was published with cause={_name(cause)}, which is not a "
                    f"message that this transaction handles: give one of those the handler was "
                    f"called with."
                )
            return self._causes[id(cause)]
        if len(self._causes) == 1:
            return next(iter(self._causes.values()))
        if self._answers_a_saga:
            raise UsageError(
                f"{_name(effect)} was published by a batch handler without a cause, but the batch "
                f"holds messages of a saga, which waits for answers to its commands: write "
                f"tx.publish(…, cause=message) or tx.send(…, cause=message)."
            )
        return None

    @cached_property
    def _answers_a_saga(self) -> bool:
        """Whether a message that is published without a cause might leave a saga waiting."""
        return any("sagaid" in envelope.attributes for envelope in self._causes.values())


def _name(message: object) -> str:
    identity = getattr(message, "__identity__", None)
    return type(message).__name__ if identity is None else str(identity)
