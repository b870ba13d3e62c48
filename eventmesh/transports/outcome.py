"""What became of a delivery. Closed: every delivery ends in exactly one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Done:
    """Handled; the broker may forget it."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """To be delivered to the same subscription again, not before `delay` seconds, as the next
    attempt."""

    delay: float


@dataclass(frozen=True, slots=True)
class Dead:
    """To be kept as a dead letter: `reason` for people, `error` with the details."""

    reason: str
    error: str = ""


Outcome = Done | RetryAfter | Dead

DONE = Done()
