"""One subscription in a FastStream app. Its messages are handled by the code that a worker runs, in
groups of one, which calls FastStream to call the handler."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog
from faststream import StreamMessage

from eventmesh.contracts.message import Message
from eventmesh.errors import Unreachable, UsageError
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.consuming.dead_letter_signal import tell_sagas
from eventmesh.runtime.consuming.pausing import PauseSwitch
from eventmesh.runtime.declaring.handler import Call, Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.outage_log import OutageLog
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.tracing.port import NO_CONSUMER_TRACING, ConsumerTracing
from eventmesh.transports.base import Delivery, Transport
from eventmesh.transports.outcome import Done, Outcome

LOOK_INTERVAL = 0.5
"""Seconds between two looks, while a subscription is paused, whether the app is stopping."""


class FastStreamSubscriber(Protocol):
    """What an intake needs to know of a FastStream subscriber."""

    running: bool


@dataclass(slots=True, eq=False)
class Arrival:
    """A message that FastStream is processing for an intake. `received` is what FastStream got from
    its client. `message` is set once it has been read and validated. `held_already` says that this
    process is still processing an earlier delivery. `tracing` records it once it is being handled.
    """

    intake: Intake
    delivery: Delivery
    received: Any
    message: Message | None = None
    held_already: bool = False
    tracing: ConsumerTracing = NO_CONSUMER_TRACING


class Intake(ABC):
    """One subscription. A subclass for each broker knows how FastStream's messages are read and
    settled."""

    def __init__(self, service: Service, handler: Handler) -> None:
        self.handler = handler
        self.vitals = SubscriptionVitals(service.name, handler.subscription, service.clock)
        self.switch = PauseSwitch()
        self._service = service
        self._arrivals: dict[StreamMessage[Any], Arrival] = {}
        self._subscribers: list[FastStreamSubscriber] = []
        self._trouble = Reconnect(service.clock)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.faststream")
        self._outage = OutageLog(
            service.clock, self._log.bind(subscription=handler.subscription.name)
        )

    @abstractmethod
    async def settle(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Settle a delivery on the broker; returns whether FastStream is still to acknowledge it.
        Unreachable if the broker did not take the settlement."""

    def let_go(self, arrival: Arrival) -> None:  # noqa: B027 - only some brokers need it
        """This process has finished with the arrival."""

    def serve(self, subscriber: FastStreamSubscriber) -> None:
        """Handle this subscriber's messages, and wait for a lost database while it is running."""
        self._subscribers.append(subscriber)

    def note(self, message: StreamMessage[Any], arrival: Arrival) -> None:
        """Remember what arrived as this message until FastStream has processed it."""
        self._arrivals[message] = arrival

    def processed(self, received: Any) -> None:
        """FastStream has processed what it got from its client, however that ended."""
        for message, arrival in list(self._arrivals.items()):
            if arrival.received is received:
                del self._arrivals[message]
                self.let_go(arrival)

    def arrival_of(self, message: StreamMessage[Any]) -> Arrival | None:
        """What arrived as this message, if it belongs to this subscription."""
        return self._arrivals.get(message)

    async def decode(self, message: StreamMessage[Any]) -> Message:
        """FastStream's decoder: the validated message, which the middleware has read."""
        arrival = self.arrival_of(message)
        if arrival is None or arrival.message is None:
            raise UsageError(
                f"A message of {self.handler.subscription.name} bypassed EventMesh's middleware: "
                f"another middleware replaced it by a copy. Let it pass on what it was given."
            )
        return arrival.message

    async def run(self, arrival: Arrival, call: Call) -> Outcome:
        """Handle what arrived by `call`; returns its outcome once that is committed.

        While the database is lost, this waits; it raises Unreachable only if the app is stopping.
        """
        reconnect = Reconnect(self._service.clock)

        async def wait_for_database(error: Unreachable) -> None:
            if not any(subscriber.running for subscriber in self._subscribers):
                raise error
            self._outage.failed("subscription waiting for database", error)
            await reconnect.wait()

        delivery = arrival.delivery
        arrival.tracing = tracing = self.handler.traced_by(self._service.tracing)
        tracing.handed_over([delivery])
        runner = BatchRunner(
            self._service,
            replace(self.handler, call=call),
            self.vitals,
            wait_for_database=wait_for_database,
            tracing=tracing,
        )
        [(_, outcome)] = await runner.run([delivery])
        self._trouble.succeeded()
        if self._outage.ended():
            self._log.info(
                "subscription consuming again", subscription=self.handler.subscription.name
            )
        return outcome

    async def settle_traced(self, arrival: Arrival, outcome: Outcome) -> bool:
        """As `settle`. There is a span for a retry and a dead letter, which are ours; FastStream
        acknowledges the others."""
        if isinstance(outcome, Done):
            acknowledge = await self.settle(arrival.delivery, outcome)
        else:
            with arrival.tracing.settling([(arrival.delivery, outcome)]):
                acknowledge = await self.settle(arrival.delivery, outcome)
        self.vitals.settled([outcome])
        return acknowledge

    async def tell_saga(self, delivery: Delivery, outcome: Outcome, transport: Transport) -> None:
        """Tell the saga whose command is about to be dead-lettered; Unreachable, upon which the
        delivery may not be settled."""
        await tell_sagas(
            [(delivery, outcome)],
            self.handler.models,
            transport,
            service=self._service.name,
            clock=self._service.clock,
            log=self._log,
            tracing=self._service.tracing,
        )

    async def back_off(self) -> None:
        """Wait before giving back a message that will be delivered again at once."""
        await self._trouble.wait()

    async def wait_while_paused(self) -> bool:
        """Return True once the subscription may be consumed, or False once the app is stopping.

        FastStream goes on receiving, so as many messages as may be handled at a time wait here.
        """
        while not self.switch.on.is_set():
            waits = [
                asyncio.ensure_future(self.switch.on.wait()),
                asyncio.ensure_future(self._service.clock.sleep(LOOK_INTERVAL)),
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if not any(subscriber.running for subscriber in self._subscribers):
                return False
        return True

    async def note_pauses(self) -> None:
        """Log when the subscription is paused, and when it is resumed, until cancelled."""
        log = self._log.bind(subscription=self.handler.subscription.name)
        while True:
            await self.switch.off.wait()
            if (pause := self.switch.pause) is not None:
                self.vitals.paused = str(pause)
                log.warning("subscription paused", by=pause.who, reason=pause.reason)
            await self.switch.on.wait()
            self.vitals.paused = ""
            log.info("subscription resumed")


def messages_in(returned: Any) -> Sequence[Message]:
    """The messages in what a handler returned; a FastStream handler may return anything."""
    if isinstance(returned, Message):
        return (returned,)
    if isinstance(returned, list | tuple) and all(isinstance(each, Message) for each in returned):
        return returned
    return ()
