"""Time, ids and sleep come from here, so that a test can own them.

Nothing else in the package asks the operating system for the time, and nothing else makes ids.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol

import uuid_utils


class Clock(Protocol):
    """What the package knows of time."""

    def now(self) -> datetime:
        """The time of day, in UTC and aware of it."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; only differences have a meaning."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after this many seconds of this clock."""
        ...

    def new_id(self) -> str:
        """A new UUIDv7 (RFC 9562) in text form: unique, and sorted by the time it was made."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def new_id(self) -> str:
        return str(uuid_utils.uuid7())
