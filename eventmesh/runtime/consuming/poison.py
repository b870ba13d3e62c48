"""Poison messages: those that end the process that handles them, again and again.

A message that a worker held when it died is delivered again, and a dead worker cannot say which of
the messages that it held was to blame. The broker counts how often it delivered each message,
its redelivery count, but counts innocent neighbours too: prefetched messages that no handler saw.

Where the service has a database, that database decides. From a message's fourth delivery on, it
is a suspect: it is handled alone, and its start is committed before its handler is called. The
count is deleted when handling ends, well or badly, so only a death leaves it behind. A worker
handles one suspect at a time, whatever its subscription, so that a death accuses no other. One that
loses the database while it handles a suspect handles it again, but counts no other start. With the
default of 10 deliveries, a message becomes a dead letter at the eighth start without an end.

Without a database only the broker's count is left, so it must be made to say something: in cautious
mode one message is fetched at a time, and a death raises the count of that message alone. The
consumer of an ordered subscription on RabbitMQ holds more than it is asked for. So it counts by
itself, see `rabbitmq/ordered/partition`, and what it only held is delivered for the first time.

| mode     | fetched at a time  | it ends when                                                  |
|----------|--------------------|---------------------------------------------------------------|
| cautious | 1                  | 10 messages came for the first time, and none the third time  |
| normal   | as many as allowed | a message comes for the third time; its batch is given back   |

A subscription begins in cautious mode, because the worker before may have been killed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from eventmesh.persistence import starts
from eventmesh.persistence.database import AsyncSession
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead

SUSPECT_AFTER = 3
"""Deliveries, of one attempt, after which a message is handled alone and its starts are counted."""

CAUTIOUS_AFTER = 2
"""Deliveries after which messages are fetched one by one, where no database counts starts. Two may
be innocent: RabbitMQ also counts what a consumer that left had merely fetched, and each time that
cautious mode begins, a consumer leaves."""

FIRST_DELIVERIES_TO_LEAVE = 10
"""First deliveries after which cautious mode ends, if none above CAUTIOUS_AFTER came between."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether it was delivered so often that it may be ending its workers."""
    return delivery.deliveries > SUSPECT_AFTER


def delivery_limit(max_deliveries: int, *, starts_are_counted: bool) -> float:
    """Deliveries after which a message is dead-lettered unseen. Where starts are counted they
    decide instead, so there is no limit."""
    return math.inf if starts_are_counted else max(max_deliveries, SUSPECT_AFTER + 2)


def poison_reason(delivery: Delivery) -> str:
    """Why a message that was delivered too often is a dead letter."""
    return (
        f"poison message: delivered {delivery.deliveries - 1} times before this without being "
        f"settled, so its handler may be killing its worker (EVENTMESH_MAX_DELIVERIES)"
    )


@dataclass(frozen=True, slots=True)
class CautiousMode:
    """Whether one message is fetched at a time, and the first deliveries since it began."""

    is_on: bool = True
    first_deliveries: int = 0

    def after(self, deliveries: Iterable[Delivery]) -> CautiousMode:
        """The mode once these have been received. If it is on now and was off when they were
        fetched, they must be given back: only a message that is fetched alone can be judged."""
        counts = [delivery.deliveries for delivery in deliveries]
        if max(counts, default=0) > CAUTIOUS_AFTER:
            return CautiousMode()
        first = self.first_deliveries + counts.count(1)
        return CautiousMode(self.is_on and first < FIRST_DELIVERIES_TO_LEAVE, first)


class StartCounts:
    """How often the handling of each suspect of one subscription began and never ended, kept in
    the service's database."""

    def __init__(self, service: Service, subscription: str) -> None:
        self._service = service
        self._subscription = subscription
        self._most = max(service.settings.max_deliveries - SUSPECT_AFTER, 1)

    async def begin(self, delivery: Delivery) -> Dead | None:
        """Commit that the handling of a suspect begins; Dead, instead, if it began too often.
        Unreachable when the database does not answer."""
        database = await self._service.database()
        key = self._subscription, delivery.envelope.unique_id
        async with database.connection() as connection:
            if await starts.note(connection, *key) <= self._most:
                return None
            await starts.forget(connection, *key)
        return Dead(
            f"{poison_reason(delivery)}. From delivery {SUSPECT_AFTER + 1} on its handler's starts "
            f"are counted: {self._most} of them never came to an end"
        )

    async def end(self, delivery: Delivery) -> None:
        """Handling came to an end, whichever: this message does not end its workers."""
        database = await self._service.database()
        async with database.connection() as connection:
            await starts.forget(connection, self._subscription, delivery.envelope.unique_id)

    async def end_with(self, session: AsyncSession, delivery: Delivery) -> None:
        """As `end`, in the transaction that commits the message's effects."""
        await starts.forget(session, self._subscription, delivery.envelope.unique_id)
