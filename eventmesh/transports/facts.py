"""What a broker says about itself as a whole, beside the messages of single subscriptions.

Each transport fills in what its broker can tell; `unknown` says why the rest is missing. The facts
are only measured here. What is good and what is bad about them is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BrokerFacts:
    """What is known of a broker; None where it was not told, for the reason in `unknown`."""

    version: str | None = None
    clock_ahead: float | None = None
    """By how many seconds the broker's clock is ahead of this machine's; negative if it is behind.
    As exact as half the time that the answer took."""
    delayed_together: int | None = None
    """Retries that are not due, of all subscriptions, on a broker that keeps them together."""
    unknown: Mapping[str, str] = field(default_factory=dict)
    """Why a fact is None, by its name, in words for people. A fact that such a broker does not have
    is None, and is not in here."""
