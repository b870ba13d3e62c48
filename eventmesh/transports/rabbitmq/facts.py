"""What RabbitMQ tells an operator without delivering a message.

By AMQP, a passive declaration tells how many messages are ready in a queue, and how many consumers
it has. The rest is asked of the management API, where its URL is set. Retries that are not due wait
in queues that all subscriptions share, so they can be counted only together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription, SubscriptionStats
from eventmesh.transports.facts import (
    BrokerFacts,
    KnownSubscription,
    RabbitmqFacts,
    RabbitmqQueue,
)
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.inspection import QueueCounts, count_messages
from eventmesh.transports.rabbitmq.management import VARIABLE, ManagedQueue, Management
from eventmesh.transports.rabbitmq.topology import DELAY_STEPS, Topology

_NOT_SET = f"RabbitMQ tells it by its management API only: set {VARIABLE}"

_SHARED = "RabbitMQ keeps the retries of all subscriptions together"

_HELD_BY_WORKERS = (
    "workers hold what waits for a retry, or for an earlier message of its key, and RabbitMQ does "
    "not report what they hold; it counts as in flight"
)

_RIGHTS_SHOW_IN_USE = (
    "RabbitMQ tells what a user may not do only when it is done: a worker reports it at its start"
)

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
        topology = self._topology
        queues = topology.queues(subscription)
        fronts, moved = topology.front_queues(subscription), topology.moved_queues(subscription)
        late = [] if subscription.order is None else [topology.late_queue(subscription)]
        sign, dead_letters = topology.sign(subscription), topology.dead_letter_queue(subscription)
        async with self._connection.guard():
            counts = await count_messages(
                self._connection,
                dict.fromkeys([sign, dead_letters, *queues, *fronts, *late, *moved[:1]]),
            )
            if moved and moved[0] in counts:
                counts |= await count_messages(self._connection, moved[1:])
        empty = QueueCounts(0, 0)
        consumers = counts.get(sign, empty).consumers
        in_flight, why = await self._held_by_workers(queues) if sign in counts else (0, "")
        unknown = {"delayed": _SHARED, "in_flight": why, "oldest_age": _NO_AGE}
        held: int | None = 0
        if subscription.order is not None and consumers:
            held = None
            unknown |= dict.fromkeys(("delayed", "held"), _HELD_BY_WORKERS)
        return SubscriptionStats(
            ready=sum(
                counts.get(queue, empty).ready for queue in (*queues, *fronts, *late, *moved)
            ),
            delayed=None,
            in_flight=in_flight,
            dead=counts.get(dead_letters, empty).ready,
            oldest_age=None,
            consumers=consumers,
            declared=sign in counts,
            held=held,
            unknown={figure: reason for figure, reason in unknown.items() if reason},
        )

    async def _held_by_workers(self, queues: Sequence[str]) -> tuple[int | None, str]:
        """How many messages of these queues are unacknowledged, or why that is unknown."""
        if self._management is None:
            return None, _NOT_SET
        try:
            if len(queues) == 1:
                found = [await self._management.queue(queues[0])]
            else:
                known = await self._management.queues(self._topology.name_prefix)
                found = [known.get(queue) for queue in queues]
        except Unreachable as error:
            return None, str(error)
        numbers = [None if queue is None else queue.unacknowledged for queue in found]
        if None in numbers:
            return None, "RabbitMQ's management API has no figures of this queue yet"
        return sum(number for number in numbers if number is not None), ""

    async def examine(self, *, thorough: bool) -> BrokerFacts:
        """What `Transport.examine` promises."""
        async with self._connection.guard(None):
            version = await self._connection.server_version()
        unknown = {} if not thorough else {"forbidden": _RIGHTS_SHOW_IN_USE}
        if self._management is None:
            return self._without_management(version, await self._count_delayed(), unknown, _NOT_SET)
        try:
            before = self._clock.now()
            nodes = await self._management.nodes()
            middle = before + (self._clock.now() - before) / 2
            queues = await self._management.queues(self._topology.name_prefix)
        except Unreachable as error:
            delayed = await self._count_delayed()
            return self._without_management(version, delayed, unknown, str(error))
        delays = {self._topology.delay(step) for step in DELAY_STEPS}
        return BrokerFacts(
            version,
            # Whole seconds, rounded down: the true time is half a second later on average.
            None if nodes.time is None else (nodes.time - middle).total_seconds() + 0.5,
            sum(queue.ready or 0 for name, queue in queues.items() if name in delays),
            unknown,
            subscriptions=known_subscriptions(self._topology, queues),
            rabbitmq=rabbitmq_facts(nodes.content, queues.values()),
        )

    def _without_management(
        self, version: str, delayed: int, unknown: dict[str, str], why: str
    ) -> BrokerFacts:
        reasons = dict.fromkeys(("clock_ahead", "subscriptions", "rabbitmq"), why)
        return BrokerFacts(version, None, delayed, reasons | unknown)

    async def _count_delayed(self) -> int:
        """The retries in the delay queues that exist, by AMQP."""
        async with self._connection.guard(None):
            counts = await count_messages(self._connection, map(self._topology.delay, DELAY_STEPS))
        return sum(queue.ready for queue in counts.values())


def known_subscriptions(
    topology: Topology, queues: Mapping[str, ManagedQueue]
) -> tuple[KnownSubscription, ...]:
    """The subscriptions that have these queues; the partitions of one count together."""
    waiting: dict[str, int | None] = {}
    for name, queue in sorted(queues.items()):
        if name.startswith(topology.queue_prefix):
            subscription = name.removeprefix(topology.queue_prefix)
        elif name.startswith(topology.partition_prefix):
            subscription = name.removeprefix(topology.partition_prefix).rsplit(".", 2)[0]
        else:
            continue
        here = None if queue.ready is None else queue.ready + (queue.unacknowledged or 0)
        before = waiting.get(subscription, 0)
        waiting[subscription] = None if here is None or before is None else before + here
    return tuple(KnownSubscription(name, waiting[name]) for name in sorted(waiting))


def rabbitmq_facts(nodes: object, queues: Iterable[ManagedQueue]) -> RabbitmqFacts:
    """The facts in the API's answers, in which any member may be missing."""
    known = [node for node in nodes if isinstance(node, dict)] if isinstance(nodes, list) else []
    alarms, stopped, partitions = [], [], []
    for node in known:
        name = str(node.get("name", "?"))
        if node.get("mem_alarm"):
            alarms.append(f"{name} is short of memory")
        if node.get("disk_free_alarm"):
            alarms.append(f"{name} is short of disk space")
        if node.get("running") is False:
            stopped.append(name)
        if others := node.get("partitions"):
            partitions.append(f"{name} does not see {', '.join(map(str, others))}")
    return RabbitmqFacts(
        tuple(
            RabbitmqQueue(
                queue.name, queue.kind, queue.policy, queue.policy_definition, queue.state
            )
            for queue in sorted(queues, key=lambda queue: queue.name)
        ),
        tuple(alarms),
        tuple(stopped),
        tuple(partitions),
    )
