"""What a handler gets: the database session, and the messages to send if its changes commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.clock import Clock
from eventmesh.contracts.message import Command, Event, Message, check_message
from eventmesh.contracts.registry import Registry
from eventmesh.duration import Duration, seconds
from eventmesh.errors import UndeclaredMessage, UsageError
from eventmesh.persistence.outbox import Outgoing
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
    committed: Callable[[], None] = lambda: None
    """Called after each commit that put messages into the outbox."""


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
        cause: Envelope | None = None,
    ) -> None:
        self.session = session
        self._sender = sender
        self._keep = keep
        self._cause = cause
        self._has_ended = False

    def end(self) -> None:
        """Refuse further messages: nobody would store them."""
        self._has_ended = True

    def publish(self, event: Event, *, delay: Duration = 0) -> None:
        """Publish an event of this service, after `delay` at the earliest.

        UndeclaredMessage when the service did not declare it; MessageTooLarge; UsageError.
        """
        check_message(event)
        if not isinstance(event, Event):
            raise UsageError(f"{_name(event)} is not an event: use send for a command.")
        self.add(event, delay=delay)

    def send(self, command: Command, *, delay: Duration = 0) -> None:
        """Send a command to its owner, after `delay` at the earliest. Raises as `publish`."""
        check_message(command)
        if not isinstance(command, Command):
            raise UsageError(f"{_name(command)} is not a command: use publish for an event.")
        self.add(command, delay=delay)

    def add(
        self,
        message: Message,
        *,
        delay: Duration = 0,
        extensions: Mapping[str, str] | None = None,
    ) -> None:
        """Publish or send, whichever the message is, with attributes of one's own."""
        check_message(message)
        sender = self._sender
        if not sender.registry.publishes(type(message)):
            raise UndeclaredMessage(
                f"Service {sender.service!r} published {_name(message)} without declaring it. Add "
                f"service.publisher({type(message).__name__}), or name it in the handler's return "
                f"annotation."
            )
        envelope = seal(
            message,
            source=sender.service,
            clock=sender.clock,
            cause=self._cause,
            extensions=extensions,
            max_bytes=sender.max_bytes,
            version=sender.registry.written(type(message)),
        )
        if self._has_ended:
            raise UsageError(
                f"{envelope.name} was published with a transaction that has ended: publish "
                f"before the handler returns, or inside `async with service.transaction() as tx:`."
            )
        self._keep(Outgoing(envelope, seconds(delay)))


def _name(message: object) -> str:
    identity = getattr(message, "__identity__", None)
    return type(message).__name__ if identity is None else str(identity)
