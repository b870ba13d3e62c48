"""What RabbitMQ tells an operator without delivering a message.

By AMQP, a passive declaration tells how many messages are ready in a queue, and how many consumers
it has. The rest is asked of the management API, where its URL is set. Retries that are not due wait
in queues that all subscriptions share, so they can be counted only together.
"""

from __future__ import annotations

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription, SubscriptionStats
from eventmesh.transports.facts import BrokerFacts
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.inspection import QueueCounts, count_messages
from eventmesh.transports.rabbitmq.management import VARIABLE, Management
from eventmesh.transports.rabbitmq.topology import DELAY_STEPS, Topology

_NOT_SET = f"RabbitMQ tells it by its management API only: set {VARIABLE}"

_SHARED = "RabbitMQ keeps the retries of all subscriptions together"

_NO_AGE = "RabbitMQ tells the age of a message only by delivering it"


class Facts:
    """Asks one broker."""

    def __init__(
        self,
        connection: BrokerConnection,
        topology: Topology,
        clock: Clock,
        broker_url: str,
        management_url: str | None,
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._clock = clock
        self._management = Management(management_url, broker_url) if management_url else None

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        """What `Transport.stats` promises."""
        queue = self._topology.queue(subscription)
        dead_letters = self._topology.dead_letter_queue(subscription)
        async with self._connection.guard():
            counts = await count_messages(self._connection, [queue, dead_letters])
        empty = QueueCounts(0, 0)
        in_flight, why = await self._held_by_workers(queue) if queue in counts else (0, "")
        unknown = {"delayed": _SHARED, "in_flight": why, "oldest_age": _NO_AGE}
        return SubscriptionStats(
            ready=counts.get(queue, empty).ready,
            delayed=None,
            in_flight=in_flight,
            dead=counts.get(dead_letters, empty).ready,
            oldest_age=None,
            consumers=counts.get(queue, empty).consumers,
            declared=queue in counts,
            unknown={figure: reason for figure, reason in unknown.items() if reason},
        )

    async def _held_by_workers(self, queue: str) -> tuple[int | None, str]:
        """How many messages are unacknowledged, or why that is unknown."""
        if self._management is None:
            return None, _NOT_SET
        try:
            managed = await self._management.queue(queue)
        except Unreachable as error:
            return None, str(error)
        if managed is None or managed.unacknowledged is None:
            return None, "RabbitMQ's management API has no figures of this queue yet"
        return managed.unacknowledged, ""

    async def examine(self) -> BrokerFacts:
        """What `Transport.examine` promises."""
        async with self._connection.guard(None):
            version = await self._connection.server_version()
        ahead, unknown = None, {}
        if self._management is None:
            unknown["clock_ahead"] = _NOT_SET
        else:
            try:
                before = self._clock.now()
                answer = await self._management.nodes()
                middle = before + (self._clock.now() - before) / 2
                if answer.time is not None:
                    # Whole seconds, rounded down: the true time is half a second later on average.
                    ahead = (answer.time - middle).total_seconds() + 0.5
            except Unreachable as error:
                unknown["clock_ahead"] = str(error)
        return BrokerFacts(version, ahead, await self._count_delayed(), unknown)

    async def _count_delayed(self) -> int:
        """The retries in the delay queues that exist."""
        names = [self._topology.delay(step) for step in DELAY_STEPS]
        if self._management is not None:
            try:
                queues = await self._management.queues(self._topology.delay_prefix)
                return sum(queues[name].ready or 0 for name in names if name in queues)
            except Unreachable:
                pass  # AMQP tells it too, only slower
        async with self._connection.guard(None):
            counts = await count_messages(self._connection, names)
        return sum(queue.ready for queue in counts.values())
