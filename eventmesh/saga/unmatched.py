"""Events that a saga subscribes to and that match no saga: counted, and named now and then.

Such an event may be of no interest (an order that no saga handles), or the sign of a mistake (an
answer without labels, for which no step has `correlate=`). Nobody can tell, so it is neither an
error nor silent: the first one of each name is logged, and then one a minute, with their number.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

INTERVAL = 60.0
"""Seconds between two lines about events of one name."""


class Unmatched:
    """Counts the events of one saga's coordinator."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        """How many there were, by message name, since the process began."""
        self._monotonic = monotonic
        self._logged_at: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def note(self, name: str) -> int:
        """Count one more; returns how many there are to be logged, or 0 if it is too soon."""
        self.counts[name] += 1
        self._since[name] += 1
        now = self._monotonic()
        if name in self._logged_at and now - self._logged_at[name] < INTERVAL:
            return 0
        self._logged_at[name] = now
        return self._since.pop(name)
