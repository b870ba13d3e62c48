"""Tells sagas of commands that the broker has dead-lettered by itself.

RabbitMQ does that where its operator has limited a queue: to a time to live, a length, a number of
deliveries. No worker sees the message again, so none has answered its saga, which would wait until
its time-out. So a worker looks, every few seconds, whether one of its subscriptions has more dead
letters than it has written, and then tells the sagas of those that the broker wrote.

To look means to take all dead letters out of their queue for a moment, so it is done only if their
number has grown:

| dead letters | written by this process | what it does                       |
|--------------|-------------------------|------------------------------------|
| 3, as before | 0                       | nothing                            |
| 5            | 2                       | nothing: both are its own          |
| 6            | 0                       | looks: another process, or the     |
|              |                         | broker, has written one            |
| 4            | 0                       | nothing: an operator has taken two |

Each process tells a saga once, and all of them by the same message, which takes effect once.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from eventmesh.clock import Clock
from eventmesh.contracts.message import Command
from eventmesh.errors import Unreachable
from eventmesh.runtime.consuming.dead_letter_signal import is_saga_command, tell_sagas
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.transports.base import Delivery, Transport
from eventmesh.transports.outcome import Dead

INTERVAL = 5.0
"""Seconds between two questions for the number of dead letters."""

_SECONDS_PER_LETTER = 0.01
"""By which the next look is put off, as long as looking itself may take."""

_MOST_LETTERS = 65_535
"""RabbitMQ shows no more of them at once."""


class BrokerDeadLetters:
    """Watches the dead letters of one subscription until `stopping` is set."""

    def __init__(
        self,
        service: Service,
        handler: Handler,
        vitals: SubscriptionVitals,
        transport: Transport,
        clock: Clock,
        stopping: asyncio.Event,
    ) -> None:
        self._service = service
        self._handler = handler
        self._vitals = vitals
        self._transport = transport
        self._clock = clock
        self._stopping = stopping
        self._number = 0
        self._written = 0
        self._told: set[str] = set()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.worker").bind(
            service=service.name, subscription=handler.subscription.name
        )

    @staticmethod
    def are_needed(handler: Handler, transport: Transport) -> bool:
        """Whether a saga may wait for this handler, and the broker may dead-letter its messages."""
        return transport.dead_letters_by_itself and any(
            issubclass(model, Command) and not model.__is_internal__
            for model in handler.models.values()
        )

    async def run(self) -> None:
        """Look now and then. A broker that is away is asked again; consuming reports it."""
        while not self._stopping.is_set():
            letters = 0
            try:
                letters = await self.look()
            except Unreachable as error:
                self._number = 0  # look again in any case
                self._log.debug("dead letters not looked at", error=str(error))
            await self._pause(max(INTERVAL, letters * _SECONDS_PER_LETTER))

    async def look(self) -> int:
        """Tell sagas of what the broker has dead-lettered since the last look; returns how many
        dead letters were looked at."""
        subscription = self._handler.subscription
        number = (await self._transport.stats(subscription)).dead
        # Afterwards: one that is written meanwhile causes a look too many, not one too few.
        written = self._vitals.outcomes[Dead.kind]
        grown_by, self._number = number - self._number, number
        grown_by, self._written = grown_by - (written - self._written), written
        if grown_by <= 0:
            return 0
        letters = await self._transport.dead_letters(subscription, limit=_MOST_LETTERS)
        # Of what died earlier, its saga has been purged.
        since = self._clock.now() - timedelta(seconds=self._service.settings.saga_window)
        new = [
            letter
            for letter in letters
            if letter.by_broker
            and letter.died_at >= since
            and letter.id not in self._told
            and is_saga_command(letter.envelope, self._handler.models)
        ]
        for letter in new:
            self._log.warning(
                "message dead-lettered by broker",
                name=letter.envelope.name,
                message_id=letter.envelope.id,
                reason=letter.reason,
            )
        await tell_sagas(
            [(Delivery(letter.envelope), Dead(letter.reason)) for letter in new],
            self._handler.models,
            self._transport,
            service=self._service.name,
            clock=self._clock,
            log=self._log,
            tracing=self._service.tracing,
        )
        self._told = {letter.id for letter in letters if letter.by_broker}
        return len(letters)

    async def _pause(self, seconds: float) -> None:
        waits = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(self._stopping.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
