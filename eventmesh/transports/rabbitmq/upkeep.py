"""Restoring what subscriptions need on RabbitMQ, while the transport runs.

Somebody may delete an exchange, a binding or a queue under running workers. A publisher to a
missing exchange gets an error and declares it again, but it knows nothing of subscriptions; and a
consumer whose queue is bound to nothing simply gets no messages, which are stored as unrouted. AMQP
0-9-1 has no command that lists bindings, but declaring them again changes nothing if they exist. So
every few seconds each process declares all that its subscriptions need, in one write, and reroutes
unrouted messages that have a subscription.

Rerouting waits until every other process has had time to restore its own subscriptions, because
before that it would reach only some of them:

| time  | event                                                                                   |
|-------|-----------------------------------------------------------------------------------------|
| 0 s   | somebody deletes the exchange                                                           |
| 0.1 s | from now on, what is published is stored as unrouted                                    |
| 4 s   | by now, the first process has restored the ways to all queues, and sees what is unrouted |
| 9 s   | it reroutes that                                                                        |

If somebody deletes both ways of a message at once, a subscription that is restored after another
misses what is published in between: for one that nobody consumes, this may be a minute.

Others may give a subscription an order, or take it away, once its last worker has left, while that
process still drains other subscriptions, or is told to pause this one. To bind the old queues again
would give them a copy of each message, so what this process does not consume is restored only if it
is still declared as this process declares it. RabbitMQ logs an error for each question whether a
queue exists that does not, so we look once a minute, and when messages that have become unrouted
tell that something was deleted: then it is restored in time for their rerouting.

A round also looks for retries that were delayed before their subscription had an order.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog
from aiormq.channel import Channel

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.connection import BrokerConnection
from eventmesh.transports.rabbitmq.declaring import declare_all
from eventmesh.transports.rabbitmq.relocation import Relocation
from eventmesh.transports.rabbitmq.rerouting import Rerouter
from eventmesh.transports.rabbitmq.topology import Topology

INTERVAL = 4.0
"""Seconds between two rounds of one process, at most."""

REROUTING_INTERVAL = 1.0
"""Seconds between them while unrouted messages wait to be rerouted."""

GRACE = 4.5
"""Seconds that unrouted messages wait at least: INTERVAL, and the time that a round takes."""

ROUNDS_BETWEEN_LOOKS = 15
"""Rounds, about a minute, after which we look again whether others have changed what this process
does not consume; while rounds fail, also whether the number of partitions was changed after we had
looked at it, and before we declared them."""

FOREIGN_INTERVAL = 20.0
"""Seconds between two searches for our messages among foreign ones."""


class TopologyUpkeep:
    """Restores what the subscriptions need that this process has declared."""

    def __init__(
        self,
        connection: BrokerConnection,
        topology: Topology,
        clock: Clock,
        rerouter: Rerouter,
        relocation: Relocation,
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._clock = clock
        self._rerouter = rerouter
        self._relocation = relocation
        self._subscriptions: dict[Subscription, None] = {}
        self._consumers: Counter[Subscription] = Counter()
        self._rounds_until_look = 0
        self._known_changed: list[Subscription] = []
        self._task: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._unrouted_since: dict[str, float] = {}
        self._foreign_known = 0
        self._foreign_since: float | None = None
        self._foreign_searched_at = clock.monotonic() - FOREIGN_INTERVAL
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    def covers(self, subscription: Subscription) -> bool:
        return subscription in self._subscriptions

    def idle(self) -> list[Subscription]:
        """Those that are covered, but not consumed at the moment."""
        return [each for each in self._subscriptions if not self._consumers[each]]

    def cover(self, subscriptions: Sequence[Subscription]) -> None:
        """Restore what these need, too, from now on."""
        self._subscriptions |= dict.fromkeys(subscriptions)
        if self._task is None and self._subscriptions:
            self._task = asyncio.create_task(self._run())

    @contextmanager
    def consumed(self, subscription: Subscription) -> Iterator[None]:
        """While this lasts, a consumer of this process keeps others from declaring it otherwise."""
        self._consumers[subscription] += 1
        try:
            yield
        finally:
            self._consumers[subscription] -= 1

    async def stop(self) -> None:
        task, self._task, self._channel = self._task, None, None
        self._subscriptions.clear()
        self._unrouted_since.clear()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        logged, failed = "", 0
        while True:
            reroutes_soon = any(map(self._rerouter.may_try, self._unrouted_since))
            interval = REROUTING_INTERVAL if reroutes_soon else INTERVAL
            await self._clock.sleep(interval * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
            try:
                await self.restore()
                logged, failed = "", 0
            except Unreachable:
                # Whoever consumes or publishes notices that as well, and reports it.
                self._channel = None
            except UsageError as error:
                self._channel = None
                if logged != str(error):
                    logged = str(error)
                    self._log.error("topology cannot be restored", error=logged)
                ordered = [each for each in self._subscriptions if each.order is not None]
                if ordered and failed % ROUNDS_BETWEEN_LOOKS == 0:
                    await self._relocation.cut_off_changed(ordered, patience=0.0)
                failed += 1

    async def restore(self) -> None:
        """One round: declare what may have been deleted, and reroute what has waited long
        enough."""
        idle = self.idle()
        is_due = not self._rounds_until_look
        restored = [each for each in self._subscriptions if each not in idle]
        if is_due:
            restored += await self._unchanged(idle)
        names = sorted({name for each in self._subscriptions for name in each.messages})
        channel = await self._declare(restored, names)
        self._rounds_until_look = (self._rounds_until_look or ROUNDS_BETWEEN_LOOKS) - 1
        async with self._connection.guard():
            unrouted = {
                name for name in names if await _count(channel, self._topology.unrouted_queue(name))
            }
            foreign = await _count(channel, self._topology.foreign)
            have_late_retries = [
                each
                for each in restored
                if each.order and await _count(channel, self._topology.late_queue(each))
            ]
        if not is_due and unrouted - self._unrouted_since.keys():
            await self._declare(await self._unchanged(idle))
        for each in have_late_retries:
            await self._relocation.bring_late_retries(each)
        now = self._clock.monotonic()
        for name in unrouted:
            self._unrouted_since.setdefault(name, now)
        due = [name for name, since in self._unrouted_since.items() if now - since >= GRACE]
        rerouted = await self._rerouter.reroute(due)
        for name in due:
            # Not before: RabbitMQ says 0, too, if a quorum queue does not answer it within 250 ms.
            if name not in unrouted:
                del self._unrouted_since[name]
        if self._is_time_to_search(foreign, now):
            search = await self._rerouter.search_foreign(names, self._foreign_known)
            if search is not None:
                rerouted += search.rerouted
                self._foreign_known = search.foreign - search.rerouted.total()
                self._foreign_since, self._foreign_searched_at = None, now
        if rerouted:
            self._log.warning("unrouted messages rerouted", messages=dict(rerouted))

    async def _declare(
        self, subscriptions: Sequence[Subscription], names: Sequence[str] = ()
    ) -> Channel:
        """Declare what these need, and what publishers need for messages of these names."""
        bound = {name for each in subscriptions for name in each.messages}
        entities = self._topology.for_subscriptions(subscriptions)
        if others := set(names) - bound:
            entities += self._topology.for_publishing(others)
        # At the end again, because the number of partitions may change in between.
        numbers = [
            self._topology.workers_exchange(each, each.order)
            for each in subscriptions
            if each.order
        ]
        async with self._connection.guard():
            if self._channel is None or self._channel.is_closed:
                # One channel for all rounds: to open one costs more than a round.
                self._channel = await self._connection.open_channel()
            await declare_all(self._channel, [*entities, *numbers])
            return self._channel

    async def _unchanged(self, idle: Sequence[Subscription]) -> list[Subscription]:
        """Those of these that others have not changed. Nothing reaches the old partitions of the
        others any more."""
        if not idle:
            return []
        changed = await self._relocation.declared_otherwise(idle)
        numbered = await self._relocation.numbered_otherwise(
            [each for each in idle if each.order is not None and each not in changed]
        )
        await self._relocation.cut_off_changed(numbered, patience=0.0)
        changed += numbered
        if changed and changed != self._known_changed:
            self._log.warning(
                "subscriptions not restored, which others have changed",
                subscriptions=[each.name for each in changed],
            )
        self._known_changed = changed
        return [each for each in idle if each not in changed]

    def _is_time_to_search(self, foreign: int, now: float) -> bool:
        """Whether there may be messages of ours among so many foreign ones. Searching looks at each
        of them, so it is done only if their number has changed, and rarely."""
        if foreign == self._foreign_known:
            self._foreign_since = None
            return False
        if self._foreign_since is None:
            self._foreign_since = now
        waited, since_search = now - self._foreign_since, now - self._foreign_searched_at
        return waited >= GRACE and since_search >= FOREIGN_INTERVAL


async def _count(channel: Channel, queue: str) -> int:
    return (await channel.queue_declare(queue, passive=True)).message_count or 0
