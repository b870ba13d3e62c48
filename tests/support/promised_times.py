"""Limits for what is promised within some seconds, such as the recovery after a fault.

Such a promise is made for a machine that has time for it. Everyday tests share their machine with
other tests and programs, so there each promise gets `GENEROUS` seconds: only what never comes
fails. The soak (`make soak`) runs one test at a time and holds each promise to its own seconds.
What a test measures, and writes down, is the same in both.

    await system.until(recovered, "a new effect", allowed(5.0))  # 120 s, and 5 s in the soak
"""

from __future__ import annotations

import os

MINUTES_VARIABLE = "EVENTMESH_SOAK_MINUTES"
"""Set in the soak only: for how many minutes it repeats the fault tests."""

GENEROUS = 120.0


def is_soak() -> bool:
    return bool(os.environ.get(MINUTES_VARIABLE))


def allowed(promised: float) -> float:
    """The seconds after which a test fails that waits for what is promised within `promised`."""
    return promised if is_soak() else max(GENEROUS, promised)
