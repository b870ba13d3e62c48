"""Slow participants, for `eventmesh demo --slow`: some orders meet a service that cannot answer for
a while, and the saga's steps have time-outs that are shorter than that.

The late answers then reach sagas that have given up on them, and must be undone.
"""

from __future__ import annotations

import os
import zlib
from datetime import UTC, datetime, timedelta

from eventmesh import Envelope
from eventmesh.duration import Duration

VARIABLE = "SHOP_SLOW"
"""The environment variable that makes the participants slow."""

STEP_TIMEOUT = 3.0  # seconds
OUTAGE = timedelta(seconds=4)
SHARE = 10
"""About one command of so many meets an outage of its participant."""


class OutageError(Exception):
    """What this service depends on does not answer."""


def is_slow() -> bool:
    """Whether participants are slow in this process."""
    return bool(os.environ.get(VARIABLE))


def step_timeout(usual: Duration) -> Duration:
    """How long a step waits: as usual, or less than an outage lasts where participants are slow."""
    return STEP_TIMEOUT if is_slow() else usual


def meet_outage(participant: str, what: object, command: Envelope) -> None:
    """Raise OutageError for some commands, the same ones in every run, while they are younger than
    an outage; `what` is the value that chooses them."""
    if not is_slow() or zlib.crc32(f"{participant}{what}".encode()) % SHARE:
        return
    if command.time is not None and datetime.now(UTC) - command.time < OUTAGE:
        raise OutageError(f"{participant} cannot be reached")
