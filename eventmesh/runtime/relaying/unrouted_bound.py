"""A bound on messages that wait for a subscription which may never come.

A message that no subscription takes is kept for the first that does, so that services can be
started in any order. Where none ever comes, such messages would fill the broker and stop everybody
else. So whoever publishes a message bounds how many of it are unrouted: of all processes of a
service, the one whose relay holds the first bucket of the outbox counts them about once a minute.
At half of the limit it logs a warning, which leaves as much time again; beyond the limit it deletes
the oldest, and logs how many.

The bound is a number and not an age, because a number is what fills a broker, and because it needs
no clock: a machine whose clock is wrong deletes nothing too early. Counting and deleting are
idempotent, so two processes that do it at the same moment delete no more than one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.runtime.declaring.settings import UNROUTED_MAX
from eventmesh.runtime.vitals import RelayVitals
from eventmesh.transports.base import Subscription, Transport

COUNT_INTERVAL = 60.0
"""Seconds between two counts, at the most."""

FOREIGN = "(foreign)"
"""Stands for all foreign messages; no message can have this name."""

FOREIGN_LIMIT = UNROUTED_MAX
"""How many foreign messages are kept, whatever the limit of a service: all services share them, so
the smallest limit of any would count for all."""


class UnroutedBound:
    """Bounds the unrouted messages of one service while `is_ours` says that it is this process's
    task. What it counts and deletes goes into `vitals`."""

    def __init__(
        self,
        transport: Transport,
        clock: Clock,
        limit: int,
        published: Collection[str],
        subscriptions: Sequence[Subscription],
        vitals: RelayVitals,
        is_ours: Callable[[], bool],
    ) -> None:
        """`limit` is for each name, and for foreign messages FOREIGN_LIMIT; with 0, messages are
        counted only. `subscriptions` are the service's own: what they take is moved to them instead
        of deleted."""
        self._transport = transport
        self._clock = clock
        self._limit = limit
        self._published = published
        self._subscriptions = subscriptions
        self._vitals = vitals
        self._is_ours = is_ours
        self._warned: set[str] = set()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.unrouted").bind(
            service=vitals.service
        )

    async def run(self) -> None:
        """Count again and again, until cancelled."""
        while True:
            pause = COUNT_INTERVAL * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
            await self._clock.sleep(pause)
            try:
                await self.check()
            except Unreachable as error:
                self._log.warning("unrouted messages not counted", error=str(error))

    async def check(self) -> None:
        """Count, warn, and delete what is beyond the limit; Unreachable."""
        if not self._is_ours():
            self._vitals.unrouted = {}
            return
        found = await self._transport.unrouted(self._published)
        numbers, near = dict[str, int](), set[str]()
        for each in found:
            shown = FOREIGN if each.foreign else each.message
            limit = FOREIGN_LIMIT if each.foreign and self._limit else self._limit
            numbers[shown] = each.number
            if is_near(each.number, limit) and shown not in self._warned:
                self._log.warning(
                    "unrouted messages near their limit",
                    message=shown,
                    number=each.number,
                    limit=limit,
                    advice="no subscription takes them: start one, or see `eventmesh unrouted`; "
                    "beyond the limit the oldest are deleted",
                )
            if 0 < limit < each.number:
                purged = await self._transport.purge_unrouted(
                    each.message, self._subscriptions, keep=limit
                )
                numbers[shown] -= purged
                if purged:
                    self._vitals.unrouted_purged[shown] += purged
                    self._log.warning(
                        "unrouted messages purged", message=shown, number=purged, limit=limit
                    )
            if is_near(numbers[shown], limit):
                near.add(shown)
        self._warned = near  # a name is warned of again once it was below in between
        self._vitals.unrouted = numbers


def is_near(number: int, limit: int) -> bool:
    """Whether operators are warned of so many: from half of the limit."""
    return limit > 0 and 2 * number >= limit
