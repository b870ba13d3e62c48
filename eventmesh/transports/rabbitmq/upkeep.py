"""Keeping what subscriptions need on RabbitMQ there, while the transport runs.

Somebody may delete an exchange, a binding or a queue under running workers. Who publishes to a
missing exchange is told so by RabbitMQ and makes it again, but knows nothing of subscriptions; and
a consumer of a queue that is bound to nothing hears nothing: its messages are kept as unrouted.
AMQP 0-9-1 cannot be asked which bindings there are, but making them again changes nothing where
they are there. So every few seconds all of it is made again, in one write, and what is unrouted
though it has a subscription is brought back.

What was unrouted is not brought back at once, but only after the time in which every other process
has restored its own subscriptions: until then it would reach some of them only. For example, the
exchange is deleted at 0 s. Published messages are kept from 0.1 s on; the first process that has
subscriptions restores the way of each message to all of its subscriptions, at the latest at 4 s,
and sees what is kept; at 9 s it brings that back. Where both ways of a message are deleted at once,
a subscription that is restored after another misses what is published in between.

RabbitMQ refuses a message as a whole when one of its queues does, for example one that is full by a
policy; the other queues have taken it all the same. Each attempt to bring it back would give these
another copy, so after a refusal the message's name is left alone for 30 s, then 60 s, up to 10 min.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog
from aiormq.channel import Channel

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.connection import Link, restore
from eventmesh.transports.rabbitmq.topology import Topology

INTERVAL = 4.0
"""Seconds between two restorations by one process, at the most."""

LOOK_INTERVAL = 1.0
"""Seconds between them while something waits to be brought back."""

GRACE = 4.5
"""Seconds for which it waits at least: INTERVAL and the time that a restoration takes."""

FOREIGN_INTERVAL = 20.0
"""Seconds between two searches for our messages among those of names that nobody has declared."""


FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds for which nothing of a name is brought back after RabbitMQ refused some of it: the first,
doubled with each refusal, up to the last."""


class Refusals:
    """The names of messages that RabbitMQ refused when they were brought back, and until when each
    is left alone."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pauses: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def may_try(self, name: str) -> bool:
        """Whether messages of this name may be brought back now."""
        return self._clock.monotonic() >= self._until.get(name, float("-inf"))

    def note(self, tried: Iterable[str], refused: Collection[str]) -> None:
        """Messages of these names were brought back; of these, some were refused."""
        for name in tried:
            if name in refused:
                pause = min(2 * self._pauses.get(name, FIRST_PAUSE / 2), LONGEST_PAUSE)
                self._pauses[name] = pause
                self._until[name] = self._clock.monotonic() + pause
            else:
                self._pauses.pop(name, None)
                self._until.pop(name, None)


@dataclass(frozen=True, slots=True)
class Searched:
    """How many foreign messages there were, and how many of each name were brought back."""

    foreign: int
    brought: Counter[str]


class TopologyUpkeep:
    """Restores what the subscriptions need that this process has declared.

    `bring_back` gets the names of messages that wait as unrouted, and returns how many of each it
    brought back. `search` looks for messages of these names among the foreign ones, unless of these
    there are as many as it was told; None where another process is looking into queues. A search
    holds messages, so that others see fewer of them: only one that looks alone sees the number.
    """

    def __init__(
        self,
        link: Link,
        topology: Topology,
        clock: Clock,
        refusals: Refusals,
        bring_back: Callable[[Iterable[str]], Awaitable[Counter[str]]],
        search: Callable[[Iterable[str], int], Awaitable[Searched | None]],
    ) -> None:
        self._link = link
        self._topology = topology
        self._clock = clock
        self._refusals = refusals
        self._bring_back = bring_back
        self._search = search
        self._subscriptions: dict[Subscription, None] = {}
        self._task: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._unrouted_since: dict[str, float] = {}
        self._foreign_known = 0
        self._foreign_since: float | None = None
        self._foreign_searched_at = clock.monotonic() - FOREIGN_INTERVAL
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    def covers(self, subscription: Subscription) -> bool:
        """Whether it is kept up."""
        return subscription in self._subscriptions

    def cover(self, subscriptions: Sequence[Subscription]) -> None:
        """Keep up these from now on, too."""
        self._subscriptions |= dict.fromkeys(subscriptions)
        if self._task is None and self._subscriptions:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Keep up nothing any more."""
        task, self._task, self._channel = self._task, None, None
        self._subscriptions.clear()
        self._unrouted_since.clear()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        said = ""
        while True:
            waits = any(map(self._refusals.may_try, self._unrouted_since))
            longest = LOOK_INTERVAL if waits else INTERVAL
            await self._clock.sleep(longest * random.uniform(0.8, 1.0))  # noqa: S311  # no secret
            try:
                await self.restore()
                said = ""
            except Unreachable:
                # Who consumes or publishes hears of that by itself.
                self._channel = None
            except UsageError as error:
                self._channel = None
                if said != str(error):
                    said = str(error)
                    self._log.error("topology cannot be restored", error=said)

    async def restore(self) -> None:
        """Make again what may have been deleted, and bring back what has waited long enough."""
        subscriptions = list(self._subscriptions)
        names = sorted({name for each in subscriptions for name in each.messages})
        pieces = dict.fromkeys(
            piece for each in subscriptions for piece in self._topology.for_subscription(each)
        )
        async with self._link.call():
            if self._channel is None or self._channel.is_closed:
                # One for all rounds: opening one costs more than a round.
                self._channel = await self._link.new_channel()
            channel = self._channel
            await restore(channel, list(pieces))
            waiting = {name for name in names if await _ready(channel, self._topology.kept(name))}
            foreign = await _ready(channel, self._topology.foreign)
        now = self._clock.monotonic()
        self._unrouted_since = {name: self._unrouted_since.get(name, now) for name in waiting}
        brought = await self._bring_back(
            name for name, since in self._unrouted_since.items() if now - since >= GRACE
        )
        if self._is_time_to_search(foreign, now):
            searched = await self._search(names, self._foreign_known)
            if searched is not None:
                brought += searched.brought
                self._foreign_known = searched.foreign - searched.brought.total()
                self._foreign_since, self._foreign_searched_at = None, now
        if brought:
            self._log.warning("messages brought back that were unrouted", messages=dict(brought))

    def _is_time_to_search(self, foreign: int, now: float) -> bool:
        """Whether among so many foreign messages may be ours that were not there before: seldom,
        since each has to be looked at."""
        if foreign == self._foreign_known:
            self._foreign_since = None
            return False
        if self._foreign_since is None:
            self._foreign_since = now
        waited, since_search = now - self._foreign_since, now - self._foreign_searched_at
        return waited >= GRACE and since_search >= FOREIGN_INTERVAL


async def _ready(channel: Channel, queue: str) -> int:
    return (await channel.queue_declare(queue, passive=True)).message_count or 0
