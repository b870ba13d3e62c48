"""The census of what RabbitMQ holds: by subscription, message, version and state.

It looks into the queues, which `inspection` does and which has a price, described there. A queue in
which nothing waits is left alone. Three things cannot be seen: what workers hold, which RabbitMQ
does not show; a retry that a broker which has just started is still moving on; and subscriptions
that the caller does not name.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from eventmesh.clock import Clock
from eventmesh.transports.base import Order, Subscription
from eventmesh.transports.census import Census
from eventmesh.transports.rabbitmq.connection import MAX_HELD, BrokerConnection
from eventmesh.transports.rabbitmq.inspection import (
    MAX_CONSUMERS,
    Inspector,
    QueueCounts,
)
from eventmesh.transports.rabbitmq.topology import DELAY_STEPS, Topology, window
from eventmesh.wire.envelope import Envelope


class Counting:
    """One census. `_found` is what it has counted until now."""

    def __init__(self, connection: BrokerConnection, topology: Topology, clock: Clock) -> None:
        self._inspector = Inspector(connection, topology, clock)
        self._topology = topology
        self._found = Census()

    async def count(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        untouched: Collection[str],
    ) -> Census:
        """What `Transport.census` promises."""
        topology = self._topology
        name_of_queue = {topology.queue(each): each.name for each in subscriptions}

        def see_retry(_: str, routing_key: str, envelope: Envelope) -> None:
            """All subscriptions share the delay queues; the routing key names where it goes."""
            name = name_of_queue.get(routing_key)
            if name is None and envelope.name in messages:
                name = routing_key.removeprefix(topology.queue_prefix)
            if name is not None:
                self._found.add(name, envelope, "delayed")

        def see_unrouted(_: str, __: str, envelope: Envelope) -> None:
            self._found.add("", envelope, "unrouted")

        async with self._inspector.exclusively():
            delayed = await self._delay_queues(may_touch=not untouched)
            # Held to the end: otherwise a retry might move on into a queue that was counted before.
            async with self._inspector.holding(delayed, see_retry):
                for subscription in subscriptions:
                    await self._count_subscription(subscription, subscription.name in untouched)
            if messages:
                queues = [*map(topology.unrouted_queue, sorted(messages)), topology.foreign]
                counts = await self._inspector.counts(queues)
                waiting = [name for name, queue in counts.items() if queue.ready]
                async with self._inspector.holding(waiting, see_unrouted):
                    pass
                await self._inspector.wait_until_returned(waiting)
        return self._found

    async def _delay_queues(self, *, may_touch: bool) -> list[str]:
        """The queues in which retries wait. RabbitMQ 4 goes on counting deliveries where a retry
        goes, and all subscriptions share these queues: if one subscription must not be touched, no
        delay queue may be, and what waits in them is hidden."""
        counts = await self._inspector.counts(self._topology.delay(step) for step in DELAY_STEPS)
        waiting = [name for name, queue in counts.items() if queue.ready]
        if may_touch or not waiting:
            return waiting
        self._found.hide(
            "",
            "delayed",
            sum(counts[name].ready for name in waiting),
            "RabbitMQ would count a delivery of each, and a service without a database would treat "
            "messages that were delivered often as poison messages, so wait until they are "
            "handled",
        )
        return []

    async def _count_subscription(self, subscription: Subscription, untouched: bool) -> None:
        name = subscription.name
        queues = self._topology.queues(subscription)
        fronts = self._topology.front_queues(subscription)
        moved = self._topology.moved_queues(subscription)
        if subscription.order is not None:
            moved.append(self._topology.late_queue(subscription))
        sign = self._topology.sign(subscription)
        dead_letters = self._topology.dead_letter_queue(subscription)
        names = [*queues, *fronts, *moved, dead_letters, sign]
        counts = await self._inspector.counts(dict.fromkeys(names))
        empty = QueueCounts(0, 0)
        to_hold = [dead_letters] if counts.get(dead_letters, empty).ready else []
        consumers = counts.get(sign, empty).consumers
        for queue in (*queues, *fronts, *moved):
            ready = QueueCounts(counts.get(queue, empty).ready, consumers)
            if not ready.ready:
                continue
            if why := _why_hidden(ready, subscription.order, untouched):
                self._found.hide(name, "ready", ready.ready, why)
            else:
                to_hold.append(queue)

        def see(came_from: str, _: str, envelope: Envelope) -> None:
            if came_from == dead_letters:
                self._found.add(name, envelope, "dead")
            elif envelope.attributes or came_from in queues:  # and not a note
                self._found.add(name, envelope, "ready")

        async with self._inspector.holding(to_hold, see) as other_consumers:
            pass
        if consumers or any(other_consumers.get(queue, 0) > 0 for queue in queues):
            self._found.hide(
                name,
                "in_flight",
                None,
                "workers consume this subscription, and RabbitMQ does not report what they hold, "
                "so stop them for a moment",
            )


def _why_hidden(queue: QueueCounts, order: Order | None, untouched: bool) -> str | None:
    """Why the messages that wait in a queue must not be taken; None if they may be."""
    if order is not None and queue.consumers:
        return "looking at them while workers consume could change their order, so stop the workers"
    if order is not None and queue.ready > window(order.partitions):
        return (
            "there are more than a worker holds at once, and looking at them could change their "
            "order, so wait until they are handled"
        )
    if untouched:
        return (
            "RabbitMQ would count a delivery of each, and the service, which has no database, "
            "treats messages that were delivered often as poison messages, so wait until they are "
            "handled"
        )
    if queue.consumers and queue.ready >= MAX_HELD:
        return (
            "there are more than can be received at once while workers consume, so stop the "
            "workers, or wait until they have caught up"
        )
    if queue.ready >= MAX_HELD * (MAX_CONSUMERS - 1):
        return "there are more than RabbitMQ lets one client hold, so wait until they are handled"
    return None
