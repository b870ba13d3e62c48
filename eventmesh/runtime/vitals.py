"""What a running worker knows of itself: counted while it works, read by probes and metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from eventmesh.clock import Clock
from eventmesh.runtime.consuming.delivery_log import SeenErrors
from eventmesh.transports.base import Subscription
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter

_OUTCOMES = {Done: "done", RetryAfter: "retried", Dead: "dead"}


@dataclass(slots=True)
class SubscriptionVitals:
    """One subscription of this process. Counts are since the process began."""

    service: str
    subscription: Subscription
    clock: Clock
    trouble: str = "it has not begun"
    """Why nothing is being consumed; empty while it is."""
    waiting: Counter[str] = field(default_factory=Counter)
    """Why lanes stand still although the broker delivers, and how many."""
    outcomes: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(_OUTCOMES.values(), 0))
    )
    duplicates: int = 0
    interruptions: int = 0
    """How often a server was lost."""
    batches: int = 0
    batch_seconds: float = 0.0
    began: dict[int, float] = field(default_factory=dict)
    """When the batches that are being handled began, by lane."""
    seen_errors: SeenErrors = field(default_factory=SeenErrors)
    """Whose tracebacks the log has."""

    @property
    def why_not_consuming(self) -> str:
        """Empty while this process consumes the subscription and gets on with it."""
        return next(iter(self.waiting), "") or self.trouble

    @property
    def busy_seconds(self) -> float:
        """How long the batch that is being handled the longest has taken."""
        return self.clock.monotonic() - min(self.began.values()) if self.began else 0.0

    def settled(self, outcomes: Iterable[Outcome]) -> None:
        """The broker knows what became of these deliveries."""
        self.outcomes.update(_OUTCOMES[type(outcome)] for outcome in outcomes)

    @contextmanager
    def consuming(self) -> Iterator[None]:
        """While the broker delivers."""
        self.trouble = ""
        try:
            yield
        finally:
            self.trouble = "it is not consumed"

    @contextmanager
    def handling(self, lane: int) -> Iterator[None]:
        """While a batch is handled in a lane."""
        self.began[lane] = began_at = self.clock.monotonic()
        try:
            yield
        finally:
            del self.began[lane]
            self.batches += 1
            self.batch_seconds += self.clock.monotonic() - began_at

    @contextmanager
    def standing_still(self, why: str) -> Iterator[None]:
        """While a lane waits for a server."""
        self.interruptions += 1
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
    refused: int = 0
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
