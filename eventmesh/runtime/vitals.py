"""The state of a running worker, for probes and metrics.

The worker counts while it works, and probes read the counts whenever they are asked. Everything is
of this process only and begins at zero with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from eventmesh.clock import Clock
from eventmesh.runtime.seen_errors import SeenErrors
from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter


@dataclass(slots=True)
class SubscriptionVitals:
    """One subscription of this process."""

    service: str
    subscription: Subscription
    clock: Clock
    trouble: str = "it has not begun"
    """Why the subscription has no consumer on the broker; empty while it has."""
    paused: str = ""
    """Since when, by whom and why it is paused; empty while it is not."""
    waiting: Counter[str] = field(default_factory=Counter)
    """The servers' errors that lanes are waiting out, and how many lanes for each."""
    outcomes: Counter[str] = field(
        default_factory=lambda: Counter({each.kind: 0 for each in (Done, RetryAfter, Dead)})
    )
    duplicates: int = 0
    interruptions: int = 0
    """How often a server was lost, each time until the subscription made progress again."""
    batches: int = 0
    batch_seconds: float = 0.0
    began: dict[int, float] = field(default_factory=dict)
    """When the current batch of each lane began, by the clock's monotonic time."""
    seen_errors: SeenErrors = field(default_factory=SeenErrors)
    """Errors whose tracebacks have been logged."""

    @property
    def why_not_consuming(self) -> str:
        """Why this process makes no progress on the subscription; empty while it does."""
        return next(iter(self.waiting), "") or self.paused or self.trouble

    @property
    def busy_seconds(self) -> float:
        """For how many seconds the oldest current batch has been handled."""
        return self.clock.monotonic() - min(self.began.values()) if self.began else 0.0

    def settled(self, outcomes: Iterable[Outcome]) -> None:
        """Count deliveries that were settled on the broker."""
        self.outcomes.update(outcome.kind for outcome in outcomes)

    @contextmanager
    def consuming(self) -> Iterator[None]:
        """While the subscription has a consumer on the broker."""
        self.trouble = ""
        try:
            yield
        finally:
            self.trouble = "it is not consumed"

    @contextmanager
    def handling(self, lane: int) -> Iterator[None]:
        """While a lane handles a batch."""
        self.began[lane] = began_at = self.clock.monotonic()
        try:
            yield
        finally:
            del self.began[lane]
            self.batches += 1
            self.batch_seconds += self.clock.monotonic() - began_at

    @contextmanager
    def waiting_for_server(self, why: str) -> Iterator[None]:
        self.waiting[why] += 1
        try:
            yield
        finally:
            self.waiting[why] -= 1
            if not self.waiting[why]:
                del self.waiting[why]


@dataclass(slots=True)
class RelayVitals:
    """The relay of one service in this process."""

    service: str
    trouble: str = ""
    """Why it waits; empty while it does not."""
    relayed: int = 0
    rejected: int = 0
    unrouted: dict[str, int] = field(default_factory=dict)
    """How many messages no subscription takes, by name, as counted last; in the one process of the
    service that counts them."""
    unrouted_purged: Counter[str] = field(default_factory=Counter)
    """How many of these were deleted, because they were more than the limit."""


@dataclass(slots=True)
class Vitals:
    """Everything a worker counts."""

    stage: str = "starting"
    """starting, running, draining or stopped."""
    subscriptions: list[SubscriptionVitals] = field(default_factory=list)
    relays: list[RelayVitals] = field(default_factory=list)
