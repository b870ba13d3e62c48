"""What a settlement means on RabbitMQ: the one place where outcomes become commands.

| outcome           | commands                                                 |
|-------------------|----------------------------------------------------------|
| Done              | acknowledge                                              |
| RetryAfter, now   | publish a copy to the subscription's queue, acknowledge  |
| RetryAfter, later | publish a copy to the exchange of the delay, acknowledge |
| Dead              | publish a copy to the dead-letter queue, acknowledge     |

A copy says which attempt it is, or why it is dead, in its headers. The original is acknowledged
only once the copy is confirmed: a process that dies in between leaves both, of which the inbox
makes one.

If RabbitMQ rejects a copy, the message must neither be lost nor block others. So the next place is
tried: a retry that is rejected for its content becomes a dead letter; what is rejected for another
reason (its queue is full by a policy, say) waits REJECTED_DELAY and is delivered again as it was;
and what cannot even wait goes to the end of its own queue. Only the last raises Unreachable, so
that its consumer slows down.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from pamqp.commands import Basic

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead, RetryAfter
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.headers import dead_letter_headers, retry_headers
from eventmesh.transports.rabbitmq.messages import OutgoingMessage, Truncatable, copy_of
from eventmesh.transports.rabbitmq.publishing import (
    Batch,
    Publisher,
    is_rejected_for_its_content,
)
from eventmesh.transports.rabbitmq.topology import Entity, Topology, delay_step

REJECTED_DELAY = 30.0
"""Seconds after which a message is delivered again whose queue of retries or dead letters is
full."""

ACKS_IN_FLIGHT = 32
"""Acknowledgements on their way to a queue beyond which RabbitMQ postpones the next: see
`held_messages`."""

ACK_TIME = 0.5
"""Seconds after which it has passed them on; usually it takes a few milliseconds."""

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Original:
    """A delivered message that is to be retried or dead-lettered; `attempt` is the one that failed.
    `headers` are its own, which may be readable when not all of its properties are."""

    properties: Basic.Properties
    headers: Mapping[str, Any]
    body: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class _Copy:
    message: OutgoingMessage
    needs: Sequence[Entity]


class Copies:
    """Makes the copies of one subscription's messages. Pure, except for the clock."""

    def __init__(self, topology: Topology, subscription: Subscription, clock: Clock) -> None:
        self._topology = topology
        self._queue = topology.queue(subscription)
        self._dead_letter_queue = topology.dead_letter_queue(subscription)
        self._clock = clock

    def as_asked(self, original: Original, outcome: RetryAfter | Dead) -> _Copy:
        if isinstance(outcome, Dead):
            return self.dead_letter(original, outcome)
        return self._delivery(original, original.attempt + 1, outcome.delay, "nothing")

    def dead_letter(self, original: Original, dead: Dead, partition: str | None = None) -> _Copy:
        headers = dead_letter_headers(
            original.headers,
            dead,
            attempts=original.attempt,
            letter_id=self._clock.new_id(),
            now=self._clock.now(),
            partition=partition,
        )
        message = copy_of(
            original.properties,
            original.body,
            "",
            self._dead_letter_queue,
            headers,
            may_truncate="everything",
        )
        return _Copy(message, ())

    def after_rejection(
        self, original: Original, outcome: RetryAfter | Dead, delay: float
    ) -> _Copy:
        """For what was rejected: a retry as the next attempt, a dead letter once more as it was."""
        attempt = original.attempt + (1 if isinstance(outcome, RetryAfter) else 0)
        return self._delivery(original, attempt, delay, "headers")

    def _delivery(
        self, original: Original, attempt: int, delay: float, may_truncate: Truncatable
    ) -> _Copy:
        step = delay_step(delay)
        message = copy_of(
            original.properties,
            original.body,
            "" if step is None else self._topology.delay(step),
            self._queue,
            retry_headers(original.headers, attempt),
            may_truncate=may_truncate,
        )
        return _Copy(message, () if step is None else self._topology.for_delay(step))


class Republisher(Generic[Key]):
    """Republishes one subscription's messages that are to be retried or dead-lettered, and calls
    `acknowledge` with the keys of those of which RabbitMQ has the copy."""

    def __init__(
        self,
        connection: BrokerConnection,
        topology: Topology,
        subscription: Subscription,
        clock: Clock,
        acknowledge: Callable[[Collection[Key]], Awaitable[None]],
    ) -> None:
        self._publisher = Publisher(connection)
        self._topology = topology
        self._subscription = subscription
        self._copies = Copies(topology, subscription, clock)
        self._acknowledge = acknowledge
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    async def close(self) -> None:
        await self._publisher.close()

    async def republish(
        self, settlements: Mapping[Key, tuple[Original, RetryAfter | Dead]]
    ) -> None:
        """Return once each message has a copy somewhere and is acknowledged.

        Unreachable if the broker is lost, or if it accepted copies only at the end of the
        subscription's queue, or none.
        """
        copies = self._copies
        rejected = await self._store(
            {key: copies.as_asked(*settlement) for key, settlement in settlements.items()}
        )
        for_content = {
            key: Dead("RabbitMQ rejected its retry", str(error))
            for key, error in rejected.items()
            if is_rejected_for_its_content(error) and isinstance(settlements[key][1], RetryAfter)
        }
        if for_content:
            rejected = {key: why for key, why in rejected.items() if key not in for_content}
            rejected |= await self._store(
                {
                    key: copies.dead_letter(settlements[key][0], dead)
                    for key, dead in for_content.items()
                }
            )
        if not rejected:
            return

        reason = str(next(iter(rejected.values())))
        self._log.warning(
            "message rejected by its queue",
            subscription=self._subscription.name,
            messages=len(rejected),
            reason=reason,
            retry_after=REJECTED_DELAY,
        )
        cannot_wait = await self._store(
            self._after_rejection(settlements, rejected, REJECTED_DELAY)
        )
        if not cannot_wait:
            return

        left = await self._store(self._after_rejection(settlements, cannot_wait, 0.0))
        raise Unreachable(
            f"The broker rejected {len(cannot_wait)} message(s) of {self._subscription.name} that "
            f"are to be retried or dead-lettered, so they will be delivered again: {reason}. "
            + (
                f"Neither its delay queue nor its own queue accepts {len(left)} of them: see which "
                f"policies of RabbitMQ limit these queues."
                if left
                else "Its delay queue rejected them too: see which policies of RabbitMQ limit it."
            )
        )

    def _after_rejection(
        self,
        settlements: Mapping[Key, tuple[Original, RetryAfter | Dead]],
        keys: Iterable[Key],
        delay: float,
    ) -> dict[Key, _Copy]:
        return {key: self._copies.after_rejection(*settlements[key], delay) for key in keys}

    async def _store(self, copies: Mapping[Key, _Copy]) -> dict[Key, BaseException]:
        """Publish these copies and acknowledge their originals; returns the errors of those that
        were rejected."""
        if not copies:
            return {}
        needs = [entity for copy in copies.values() for entity in copy.needs]
        needs += self._topology.for_subscription(self._subscription)
        keys = list(copies)
        batch = Batch([copy.message for copy in copies.values()])
        try:
            rejected = await self._publisher.publish(batch, needs)
        finally:
            # Also if the others were interrupted: of these the broker has a copy.
            await self._acknowledge([keys[place] for place in sorted(batch.confirmed)])
        return {keys[place]: error for place, error in rejected.items()}


def plan_acknowledgements(
    outstanding: Iterable[int], done: Collection[int]
) -> list[tuple[int, bool]]:
    """The acknowledgements of `done`, as (tag, multiple), where `outstanding` are all tags without
    one, ascending: one for as many of the oldest as are done, and one for each other.

    For example, of 1 to 6 outstanding, 1, 2, 3 and 5 done: `[(3, True), (5, False)]`.
    """
    last = None
    for tag in outstanding:
        if tag not in done:
            break
        last = tag
    if last is None:
        return [(tag, False) for tag in sorted(done)]
    return [(last, True), *((tag, False) for tag in sorted(done) if tag > last)]
