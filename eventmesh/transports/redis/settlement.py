"""What a settlement means on Redis: the one place where outcomes become commands, for EventMesh's
own consumers and for the FastStream integration.

| outcome           | command                                                               |
|-------------------|-----------------------------------------------------------------------|
| Done              | acknowledge the entry; delete it if it is in the retry stream         |
| RetryAfter, now   | move it to the subscription's retry stream                            |
| RetryAfter, later | move it to the sorted set of delayed retries                          |
| Dead              | move it to the stream of dead letters                                 |

A move adds the copy and acknowledges the entry in one step, and does nothing if the entry has been
taken over by another consumer meanwhile. Each command is a script or a single command, not a MULTI,
which a Redis that is out of memory rejects whatever it contains: then, above all, consumers must be
able to go on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from eventmesh.clock import Clock
from eventmesh.transports.base import Delivery
from eventmesh.transports.outcome import Dead, RetryAfter
from eventmesh.transports.redis.entries import dead_letter_fields, pack_parcel
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.scripts.common import Command, call
from eventmesh.transports.redis.scripts.settling import ACKNOWLEDGE_AND_DELETE, MOVE


class SettlementCommands:
    """The commands that settle deliveries of one consumer of a subscription. The token of a
    delivery is its stream and its entry's id."""

    def __init__(self, keys: Keys, consumer: str, clock: Clock) -> None:
        self._keys = keys
        self._consumer = consumer
        self._clock = clock

    def finish(self, done: Iterable[Delivery]) -> list[Command]:
        """Forget deliveries that are done, even if another consumer has taken them over: they were
        handled, so it need not handle them again."""
        entries: dict[str, list[bytes]] = {}
        for delivery in done:
            stream, entry_id = delivery.token
            entries.setdefault(stream, []).append(entry_id)
        return [
            call(ACKNOWLEDGE_AND_DELETE, (stream,), self._keys.group, *ids)
            if stream == self._keys.retry
            else ("XACK", stream, self._keys.group, *ids)
            for stream, ids in entries.items()
        ]

    def move(self, delivery: Delivery, outcome: RetryAfter | Dead) -> Command:
        """Move a delivery to where its outcome puts it."""
        if isinstance(outcome, Dead):
            fields = dead_letter_fields(delivery, outcome, self._clock)
            return self._move_to(self._keys.dead, delivery, "", fields)
        if outcome.delay > 0:
            return self.delay(delivery, delivery.attempt + 1, outcome.delay)
        content = pack_parcel(delivery.envelope, delivery.attempt + 1, self._clock)
        return self._move_to(self._keys.retry, delivery, "", ("parcel", content))

    def delay(self, delivery: Delivery, attempt: int, seconds: float) -> Command:
        """Deliver it again as this attempt after so many seconds."""
        content = pack_parcel(delivery.envelope, attempt, self._clock)
        return self._move_to(self._keys.delayed, delivery, math.ceil(seconds * 1000), (content,))

    def _move_to(
        self, target: str, delivery: Delivery, delay_ms: int | str, content: Sequence[str | bytes]
    ) -> Command:
        stream, entry_id = delivery.token
        return call(
            MOVE,
            (stream, self._keys.retry, target),
            self._keys.group,
            self._consumer,
            entry_id,
            delay_ms,
            *content,
        )
