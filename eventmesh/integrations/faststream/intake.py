"""The way of one subscription's messages through a FastStream app: the same code that a worker
runs, in groups of one, with FastStream's call of the handler in the middle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import structlog
from faststream import StreamMessage

from eventmesh.contracts.message import Message
from eventmesh.errors import Unreachable, UsageError
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.declaring.handler import Call, Handler
from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Outcome


class Runs(Protocol):
    """The part of a FastStream subscriber that says whether it goes on."""

    running: bool


@dataclass(slots=True, eq=False)
class Arrival:
    """A message that FastStream has received for an intake. `message` is there once it has been
    read and validated; `held` already, when this process is still handling it."""

    intake: Intake
    delivery: Delivery
    message: Message | None = None
    held_already: bool = False


class Intake(ABC):
    """One subscription. Its broker's class knows how FastStream's messages are read, and how what
    became of them is told to the broker."""

    def __init__(self, service: Service, handler: Handler) -> None:
        self.handler = handler
        self._service = service
        self._vitals = SubscriptionVitals(service.name, handler.subscription, service.clock)
        self._arrivals: WeakKeyDictionary[StreamMessage[Any], Arrival] = WeakKeyDictionary()
        self._subscribers: list[Runs] = []
        self._trouble = Reconnect(service.clock)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.faststream")

    @abstractmethod
    async def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Tell the broker what became of a delivery; returns whether FastStream is still to
        acknowledge it. Unreachable when the broker did not take it."""

    def let_go(self, delivery: Delivery) -> None:  # noqa: B027 - only some brokers need it
        """It is left unsettled, and will come again."""

    def serve(self, subscriber: Runs) -> None:
        """Go on for as long as this subscriber does."""
        self._subscribers.append(subscriber)

    def note(self, message: StreamMessage[Any], arrival: Arrival) -> None:
        """Remember what arrived as this message."""
        self._arrivals[message] = arrival

    def arrival_of(self, message: StreamMessage[Any]) -> Arrival | None:
        """What arrived as this message, if it arrived here."""
        return self._arrivals.get(message)

    async def decode(self, message: StreamMessage[Any]) -> Message:
        """FastStream's decoder: the validated message, which the middleware has read."""
        arrival = self.arrival_of(message)
        if arrival is None or arrival.message is None:
            raise UsageError(
                f"A message of {self.handler.subscription.name} came past EventMesh's middleware: "
                f"another middleware put a copy in its place. Let it hand on what it was given."
            )
        return arrival.message

    async def run(self, delivery: Delivery, call: Call) -> Outcome:
        """What becomes of a delivery, handled by `call`, once that is committed.

        It is held through every loss of the database; Unreachable only when the app is stopping.
        """
        reconnect = Reconnect(self._service.clock)

        async def wait_for_database(error: Unreachable) -> None:
            if not any(subscriber.running for subscriber in self._subscribers):
                raise error
            self._log.warning(
                "subscription waiting for database",
                subscription=self.handler.subscription.name,
                error=str(error),
            )
            await reconnect.wait()

        runner = BatchRunner(
            self._service,
            replace(self.handler, call=call),
            self._vitals,
            wait_for_database=wait_for_database,
        )
        [(_, outcome)] = await runner.run([delivery])
        self._trouble.succeeded()
        return outcome

    async def pause(self) -> None:
        """Before a message is given back that will come again at once."""
        await self._trouble.wait()


def messages_in(returned: Any) -> Sequence[Message]:
    """The messages in what a handler returned, which may be anything in FastStream."""
    if isinstance(returned, Message):
        return (returned,)
    if isinstance(returned, list | tuple) and all(isinstance(each, Message) for each in returned):
        return returned
    return ()
