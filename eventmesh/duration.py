"""Durations with a unit: `"200ms"`, `"1.5s"`, `"10m"`, `"2h"`, `"1d"`."""

from __future__ import annotations

import re
from datetime import timedelta

from eventmesh.errors import UsageError

Duration = str | int | float | timedelta
"""Text with a unit, a number of seconds, or a timedelta."""

LONGEST = 365_000 * 86_400.0
"""Seconds; a thousand years. A date that is much further ahead cannot be expressed."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*")


def seconds(duration: Duration) -> float:
    """The duration in seconds; UsageError if it is not valid, negative or longer than LONGEST."""
    match duration:
        case timedelta():
            value: float = duration.total_seconds()
        case int() | float():
            value = duration
        case str() if found := _TEXT.fullmatch(duration):
            value = float(found[1]) * _UNITS[found[2]]
        case _:
            raise UsageError(
                f"{duration!r} is not a valid duration: write a number and a unit, such as "
                f'"200ms", "30s", "10m", "2h" or "1d".'
            )
    if not 0 <= value <= LONGEST:
        raise UsageError(
            f"{duration!r} is not a valid duration: it must not be negative, and at most "
            f"{LONGEST / _UNITS['d']:.0f}d."
        )
    return float(value)


_LARGE_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))


def span(seconds: float) -> str:
    """A duration for people, rounded: `20 ms`, `0.4 s`, `45 s`, `12 min`, `3 h`, `2 d`."""
    for unit, size in _LARGE_UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size:,.0f} {unit}"
    if abs(seconds) < 0.095:  # above it, one decimal of a second is enough
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def exact_span(seconds: float) -> str:
    """A configured duration for people, without rounding: `0.5 s`, `90 s`, `10 min`, `2 d`."""
    for unit, size in _LARGE_UNITS:
        if seconds >= 2 * size and seconds % size == 0:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.10g} s"
