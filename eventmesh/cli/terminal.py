"""Printing for people: the width of the output and of what is listed in it, and colour."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from eventmesh.duration import span as span  # for commands that print both

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from rich.console import Console

PIPE_WIDTH = 10_000
"""Columns of a line where it is not printed to a terminal, so that a table is not wrapped."""

NARROWEST_NAME = 8
"""Columns of a terminal that a table leaves for names, at least."""

_MOST_OF_AN_ERROR = 200
"""Characters of an error in a list, which has a line for each."""


def print_label(label: str, color: str) -> None:
    """Begin an error or a warning on standard error, in colour on a terminal. `NO_COLOR`, if it is
    set and not empty, turns that off, as it does in the console's tables."""
    is_colored = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
    typer.secho(label, fg=color, bold=True, nl=False, err=True, color=is_colored)


def console() -> Console:
    """Standard output, as wide as the terminal. What is given as text is shown as it is."""
    from rich.console import Console

    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = PIPE_WIDTH
    return made


def beginning(error: str) -> str:
    """Of a long error, what a list shows."""
    if len(error) <= _MOST_OF_AN_ERROR:
        return error
    return f"{error[: _MOST_OF_AN_ERROR - 1]}…"
