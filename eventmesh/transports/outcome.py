"""What became of a delivery. Closed: every delivery ends in exactly one of these.

Whoever handles a message decides on its delay and its error, and neither may be in the way of
settling it. So both are brought into bounds here, once, before any transport sees them.
"""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_DELAY = 366 * 86_400.0
"""Seconds after which at the latest a message comes again, whatever delay was asked for."""

MOST_CHARACTERS = 8_000
"""How long the reason of a dead letter is at most, and how long its error."""


@dataclass(frozen=True, slots=True)
class Done:
    """Handled; the broker may forget it."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """To be delivered to the same subscription again, not before `delay` seconds, as the next
    attempt. A delay that is negative or not a number is none; one beyond LONGEST_DELAY is that."""

    delay: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.delay <= LONGEST_DELAY:
            bounded = LONGEST_DELAY if self.delay > 0.0 else 0.0
            object.__setattr__(self, "delay", bounded)


@dataclass(frozen=True, slots=True)
class Dead:
    """To be kept as a dead letter: `reason` for people, `error` with the details. Both are cut in
    the middle where they are too long, and what is not Unicode in them is spelled out."""

    reason: str
    error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", storable(self.reason))
        object.__setattr__(self, "error", storable(self.error))


def storable(text: str) -> str:
    """The text as every broker can keep it: of bounded length, and without lone surrogates, such
    as those in odd file names."""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[: half - 2]}\n…\n{text[-half + 1 :]}"


Outcome = Done | RetryAfter | Dead

DONE = Done()
