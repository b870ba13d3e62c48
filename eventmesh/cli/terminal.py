"""Printing for people: the width of the output, and durations in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from rich.console import Console

PIPE_WIDTH = 10_000
"""Columns of a line where it is not printed to a terminal, so that a table is not wrapped."""


def console() -> Console:
    """Standard output, as wide as the terminal. What is given as text is shown as it is."""
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = PIPE_WIDTH
    return made


def span(seconds: float) -> str:
    """A duration for people: `0.4 s`, `45 s`, `12 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
