"""What is logged while a server is away: enough to see it, and not a line for each try.

Whoever waits for a server tries it again every second or two, and a worker has one waiter for each
subscription and outbox. The first failure is logged at once, and so is each new reason. The same
reason is logged again after 5, 10, 20 and from then on every 30 seconds:

    0 s   connection refused                    logged
    1 s   connection refused
    3 s   the login is refused                  logged: a new reason
    4 s   connection refused
    5 s   connection refused                    logged: 5 s have passed
    15 s  connection refused                    logged: 10 more

Once it has ended, the next outage begins anew.
"""

from __future__ import annotations

import structlog

from eventmesh.clock import Clock

FIRST_PAUSE = 5.0
"""Seconds until a line with the same reason is logged for the second time."""

LONGEST_PAUSE = 30.0
"""Seconds: each pause is twice the one before, up to this."""


class OutageLog:
    """The failures to reach a server, of one that waits for it. Several of its tasks may wait at
    the same time."""

    def __init__(self, clock: Clock, log: structlog.stdlib.BoundLogger) -> None:
        self._clock = clock
        self._log = log
        self._is_on = False
        self._reasons: set[tuple[str, str]] = set()
        """Those that were logged since the last pause ended."""
        self._pause = FIRST_PAUSE
        self._quiet_until = 0.0

    def failed(self, event: str, error: Exception, *, is_unexpected: bool = False) -> bool:
        """An attempt to reach the server failed: log `event`, if a line is due; for an error that
        is unexpected, with its traceback. Returns whether an outage begins, of which the tries
        until it ends are a part."""
        now, reason, begins = self._clock.monotonic(), (event, str(error)), not self._is_on
        if begins:
            self._is_on, self._pause = True, FIRST_PAUSE
            self._reasons.clear()
            self._quiet_until = now + self._pause
        elif now >= self._quiet_until:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            self._reasons.clear()
            self._quiet_until = now + self._pause
        if reason not in self._reasons:
            self._reasons.add(reason)
            if is_unexpected:
                self._log.error(event, error=str(error), exc_info=error)
            else:
                self._log.warning(event, error=str(error))
        return begins

    def ended(self) -> bool:
        """The server has answered. Returns whether it was away."""
        was_on, self._is_on = self._is_on, False
        return was_on
