"""Crash points: everywhere a process can be stopped, and one process's life up to there.

A place that is passed again although nothing has been committed in between is the same point: what
a dead process leaves is what was committed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any

KILLED = 137
"""The exit code of a process that was stopped at its point."""

BETWEEN_STEPS = ("await", "call")
"""The kinds of points at which the event loop has control."""

Point = tuple[str, str, int]
"""The kind, the place, and which time it is passed; counted from 1."""

Kill = Point | int | None
"""At which point a life ends: at this one, at the so-manieth of all, or at none."""


@dataclass(eq=False)
class Life:
    """A worker from its start to its end."""

    kill: Kill = None
    exits: bool = True
    """Whether its end is the process's end, too; else nothing of it ever runs again."""
    points: list[Point] = field(default_factory=list)
    commits: int = 0
    dead: bool = False
    asking: int = 0
    """How many answers of servers it waits for."""
    connections: list[Any] = field(default_factory=list)
    paused: bool = False
    held: list[tuple[Callable[..., object], tuple[Any, ...], Context]] = field(default_factory=list)
    """What it would do next, if it were not dead or paused."""
    kept: list[Any] = field(default_factory=list)
    """Of what is dead, nothing is to be collected, which would end it in an orderly way."""
    on_point: Callable[[Point], None] = lambda _: None
    _passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    _seen_at: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return not (self.dead or self.paused)

    def reach(self, kind: str, place: str) -> None:
        """Pass a point, or end there. What does not exit can end only between two steps."""
        if not self.exits and kind not in BETWEEN_STEPS:
            return
        if self._seen_at.get((kind, place)) == self.commits:
            return
        self._seen_at[kind, place] = self.commits
        self._passed[kind, place] += 1
        point = (kind, place, self._passed[kind, place])
        self.points.append(point)
        self.on_point(point)
        if self.kill in (point, len(self.points)):
            if self.exits:
                os._exit(KILLED)
            self.dead = True

    @contextmanager
    def asks(self) -> Iterator[None]:
        """While a server is asked."""
        self.asking += 1
        try:
            yield
        finally:
            self.asking -= 1


LIFE: ContextVar[Life | None] = ContextVar("crash_life", default=None)
"""Whose step is being run; nobody's, if it is the test's own."""
