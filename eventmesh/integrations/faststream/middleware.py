"""The FastStream middleware of a mesh. It surrounds each handler, so that a message is read,
deduped, handled and committed before FastStream acknowledges it; and it surrounds each publish, so
that what a handler publishes goes into the outbox.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Protocol

from faststream import BaseMiddleware, ContextRepo, PublishCommand, Response, StreamMessage
from faststream.exceptions import (
    AckMessage,
    NackMessage,
    RejectMessage,
    SkipMessage,
    StopApplication,
    StopConsume,
)

from eventmesh.contracts.message import Message
from eventmesh.errors import Reject, Unreachable, UsageError
from eventmesh.integrations.faststream.intake import Arrival, messages_in
from eventmesh.integrations.faststream.unit import UNIT, Unit
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.handler import Returned
from eventmesh.transports.base import Transport
from eventmesh.transports.outcome import DONE
from eventmesh.wire.envelope import Envelope

Next = Callable[[Any], Awaitable[Any]]

_STOPS = (StopConsume, StopApplication)


class MeshOfApp(Protocol):
    """What the middleware needs to know of the mesh that it belongs to."""

    def check_open(self) -> Transport:
        """The connected transport; UsageError outside of the mesh's lifespan."""
        ...

    def arrival_of(self, message: StreamMessage[Any]) -> Arrival | None:
        """What arrived as this message, if it belongs to a subscription of the mesh."""
        ...

    def processed(self, received: Any) -> None:
        """FastStream has processed what it got from its client, for the mesh or not."""
        ...

    def is_addressed_by(self, command: PublishCommand) -> bool:
        """Whether this is published to the mesh, and not elsewhere."""
        ...

    def check_destination(self, message: Message, command: PublishCommand) -> None:
        """UsageError if this message does not belong where it is published to."""
        ...

    async def publish(self, message: Message) -> None:
        """Publish a message outside of any transaction."""
        ...


class EventMeshMiddleware(BaseMiddleware[PublishCommand, Any]):
    """FastStream creates one for each message, and for each publish outside of a handler.

    Messages of the app's other subscribers, and messages that are published elsewhere, pass through
    unchanged.
    """

    def __init__(self, msg: Any, /, *, context: ContextRepo, mesh: MeshOfApp) -> None:
        super().__init__(msg, context=context)
        self._mesh = mesh
        self._called = False
        self._returned: Any = None

    async def consume_scope(self, call_next: Next, msg: StreamMessage[Any]) -> Any:
        arrival = self._mesh.arrival_of(msg)
        if arrival is None:
            return await call_next(msg)
        if arrival.held_already:
            raise NackMessage  # the handler that is still running settles it
        try:
            if not await arrival.intake.wait_while_paused():
                raise NackMessage  # the app is stopping; it is delivered again
            return await self._consume(arrival, call_next, msg)
        except (Unreachable, UsageError):
            await arrival.intake.back_off()
            raise

    async def after_processed(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> bool | None:
        """FastStream calls this also if `consume_scope` was not reached, because a middleware of
        the app failed before."""
        self._mesh.processed(self.msg)
        return await super().after_processed(exc_type, exc_val, exc_tb)

    async def publish_scope(
        self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
    ) -> Any:
        """A message for the mesh goes into the transaction of the handler that publishes it, or,
        outside of a handler, to the broker at once."""
        if not self._mesh.is_addressed_by(cmd):
            return await call_next(cmd)
        message = cmd.body
        if message is None or (self._called and message is self._returned):
            return None  # nothing to publish, or it is in the outbox already
        if not isinstance(message, Message):
            raise UsageError(
                f"A {type(message).__name__} was published to {cmd.destination!r}, which takes "
                f"EventMesh messages only. Publish an Event or a Command."
            )
        self._mesh.check_destination(message, cmd)
        unit: Unit | None = self.context.get_local(UNIT)
        if unit is not None and unit.open:
            unit.transaction.add(message)
        else:
            await self._mesh.publish(message)
        return None

    async def _consume(self, arrival: Arrival, call_next: Next, msg: StreamMessage[Any]) -> Any:
        transport = self._mesh.check_open()
        stops: list[Exception] = []

        async def call(
            message: Message, envelope: Envelope, transaction: Transaction | None
        ) -> Returned:
            assert transaction is not None  # noqa: S101 - every handler of a mesh has one
            arrival.message = message
            self._called = True
            try:
                return await self._handle(Unit(transaction, envelope), call_next, msg)
            except _STOPS as error:
                stops.append(error)
                raise

        outcome = await arrival.intake.run(arrival, call)
        if stops:  # for FastStream to handle; the message is delivered again
            raise stops[0]
        await arrival.intake.tell_saga(arrival.delivery, outcome, transport)
        acknowledge = await arrival.intake.settle_traced(arrival, outcome)
        if outcome is DONE and self._called:
            return self._returned
        # If we returned, FastStream would publish None as the handler's answer.
        raise AckMessage if acknowledge else NackMessage

    async def _handle(self, unit: Unit, call_next: Next, msg: StreamMessage[Any]) -> Returned:
        """Call the handler; returns the messages it returned, for the outbox."""
        self._returned = None
        with self.context.scope(UNIT, unit):
            try:
                returned = await call_next(msg)
            except (AckMessage, SkipMessage):
                return None
            except RejectMessage as error:
                raise Reject("the handler rejected it") from error
            finally:
                unit.open = False
        self._returned = returned.body if isinstance(returned, Response) else returned
        return messages_in(self._returned)
