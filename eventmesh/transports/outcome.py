"""The outcome of a delivery: done, retried after a delay, or dead-lettered. There is no fourth.

Application code chooses the delay of a retry and the error text of a dead letter, and neither may
prevent settling. Both are limited here, once, before any transport sees them. The `kind` of an
outcome is what metrics and traces call it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from eventmesh.storable import storable

LONGEST_DELAY = 366 * 86_400.0
"""Seconds; a longer delay is cut to this."""

MOST_CHARACTERS = 8_000
"""Longest reason, and longest error, of a dead letter; longer texts are cut in the middle."""


@dataclass(frozen=True, slots=True)
class Done:
    """Handled: the broker deletes the message."""

    kind: ClassVar[str] = "done"


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Deliver the message to the same subscription again after `delay` seconds or later, as the
    next attempt. A negative delay, or one that is not a number, is 0."""

    kind: ClassVar[str] = "retried"
    delay: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.delay <= LONGEST_DELAY:
            bounded = LONGEST_DELAY if self.delay > 0.0 else 0.0
            object.__setattr__(self, "delay", bounded)


@dataclass(frozen=True, slots=True)
class Dead:
    """Dead-letter the message, with a `reason` for people and an `error` with the details."""

    kind: ClassVar[str] = "dead"
    reason: str
    error: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", limited(self.reason))
        object.__setattr__(self, "error", limited(self.error))


def limited(text: str) -> str:
    """The text as every broker and database can store it, and at most MOST_CHARACTERS of it."""
    text = storable(text)
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[: half - 2]}\n…\n{text[-half + 1 :]}"


Outcome = Done | RetryAfter | Dead

DONE = Done()
