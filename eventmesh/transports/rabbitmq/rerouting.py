"""Rerouting: unrouted messages are published again once a subscription takes their name.

They are published through the exchange, not moved to one queue, so that all subscriptions that are
declared together get theirs. One process does it at a time: workers that start together would each
take a part, and mix the order. What is published meanwhile comes in between.

RabbitMQ rejects a message as a whole if one of its queues does, for example one that is full by a
policy; the other queues have stored it nevertheless. Each further attempt would give these another
copy. So after a rejection the message's name is left alone for 30 s, then 60 s, up to 10 min.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog
from aiormq.abc import DeliveredMessage

from eventmesh.clock import Clock
from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.held_messages import hold_messages, move
from eventmesh.transports.rabbitmq.inspection import (
    InspectionRunning,
    Inspector,
    count_messages,
)
from eventmesh.transports.rabbitmq.messages import rerouted
from eventmesh.transports.rabbitmq.publishing import Publisher
from eventmesh.transports.rabbitmq.queue_lock import QueueLock
from eventmesh.transports.rabbitmq.topology import Topology

MAX_FOREIGN = 1000
"""How many of the oldest foreign messages are searched for ours: ours are among them only if
somebody deleted the queue of their name."""

MOVE_BATCH = 500
"""Messages that are held at once while they are published again."""

PATIENCE = 60.0
"""Seconds to wait while another process reroutes."""

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds for which a name is left alone after RabbitMQ rejected one of its messages: the first
time, doubled with each rejection, up to the longest."""


class RejectedNames:
    """The names of messages that RabbitMQ rejected when they were rerouted, and until when each is
    left alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def may_try(self, name: str) -> bool:
        return self._clock.monotonic() >= self._until.get(name, float("-inf"))

    def note(self, tried: Iterable[str], rejected: Collection[str]) -> None:
        """Messages of the names `tried` were rerouted; of the names `rejected`, some were not."""
        for name in tried:
            if name in rejected:
                pause = min(2 * self._pauses.get(name, FIRST_PAUSE / 2), LONGEST_PAUSE)
                self._pauses[name] = pause
                self._until[name] = self._clock.monotonic() + pause
            else:
                self._pauses.pop(name, None)
                self._until.pop(name, None)


@dataclass(frozen=True, slots=True)
class ForeignSearch:
    """How many foreign messages there were, and how many of each name were rerouted."""

    foreign: int
    rerouted: Counter[str]


class Rerouter:
    """Publishes unrouted messages again, for the subscriptions that are declared now."""

    def __init__(
        self,
        connection: BrokerConnection,
        publisher: Publisher,
        topology: Topology,
        clock: Clock,
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._topology = topology
        self._inspector = Inspector(connection, topology, clock)
        self._lock = QueueLock(
            connection, topology.rerouting_lock, clock, "rerouting unrouted messages"
        )
        self._rejected_names = RejectedNames(clock)
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    def may_try(self, name: str) -> bool:
        """Whether messages of this name may be rerouted now, after a rejection."""
        return self._rejected_names.may_try(name)

    async def reroute(self, names: Iterable[str]) -> Counter[str]:
        """Reroute the unrouted messages of these names. What is rejected stays, and its name is
        left alone for a while. Returns how many of each name were rerouted."""
        queues = {
            self._topology.unrouted_queue(name): name
            for name in sorted(set(names))
            if self.may_try(name)
        }
        counts = await count_messages(self._connection, queues)
        waiting = [queue for queue in queues if queue in counts and counts[queue].ready]
        numbers: Counter[str] = Counter()
        if waiting:
            async with self._lock.held(PATIENCE):
                for queue in waiting:
                    numbers += await self._empty(queue, [queues[queue]])
        return numbers

    async def reroute_late(
        self, subscriptions: Sequence[Subscription], messages: Collection[str]
    ) -> None:
        """Reroute messages that were held just as one of these subscriptions was declared, so that
        it missed them."""
        await self.reroute(set(messages) & await self.declared_messages(subscriptions))

    async def reroute_foreign(self, names: Iterable[str]) -> Counter[str]:
        """Reroute the messages of these names among the oldest foreign messages."""
        wanted = [name for name in sorted(set(names)) if self.may_try(name)]
        if not wanted or not await self._count_foreign():
            return Counter()
        return await self._empty(self._topology.foreign, wanted, MAX_FOREIGN)

    async def search_foreign(self, names: Iterable[str], known: int) -> ForeignSearch | None:
        """As `reroute_foreign`, unless there are as many foreign messages as were known. None if
        another process inspects queues: it holds messages, which would not be counted."""
        try:
            async with self._inspector.exclusively(patience=0.0):
                foreign = await self._count_foreign()
                if foreign == known:
                    return ForeignSearch(foreign, Counter())
                return ForeignSearch(foreign, await self.reroute_foreign(names))
        except InspectionRunning:
            return None

    async def declared_messages(self, subscriptions: Sequence[Subscription]) -> set[str]:
        """The messages of those of these subscriptions that are declared on the broker."""
        queues = {self._topology.sign(each): each for each in subscriptions}
        declared = await count_messages(self._connection, queues)
        return {name for queue in declared for name in queues[queue].messages}

    async def _count_foreign(self) -> int:
        counts = await count_messages(self._connection, [self._topology.foreign])
        return sum(each.ready for each in counts.values())

    async def _empty(
        self, queue: str, names: Sequence[str], limit: int | None = None
    ) -> Counter[str]:
        """Reroute the messages of these names in a queue, each name up to its first message that is
        rejected; returns how many of each were."""
        needs = self._topology.for_publishing(names)
        wanted, numbers = set(names), Counter[str]()
        async with hold_messages(
            self._connection, queue, limit or sys.maxsize, at_once=limit or MOVE_BATCH
        ) as held:
            while wanted and (messages := await held.next(MOVE_BATCH)):
                ours = [message for message in messages if _routing_key(message) in wanted]
                copies = [
                    rerouted(
                        message.header.properties,
                        message.body,
                        self._topology.exchange,
                        _routing_key(message),
                    )
                    for message in ours
                ]
                rejected = await move(
                    held, [[message] for message in ours], copies, self._publisher, needs
                )
                if rejected:
                    reason = str(next(iter(rejected.values())))
                    self._log.warning(
                        "unrouted messages rejected",
                        queue=queue,
                        messages=len(rejected),
                        reason=reason,
                    )
                keys = [_routing_key(message) for message in ours]
                rejected_names = {keys[place] for place in rejected}
                numbers.update(key for place, key in enumerate(keys) if place not in rejected)
                self._rejected_names.note(set(keys), rejected_names)
                wanted -= rejected_names
        return numbers


def _routing_key(message: DeliveredMessage) -> str:
    return str(message.delivery.routing_key)  # type: ignore[union-attr]
