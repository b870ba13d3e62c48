"""Crash points: the places where a worker process can be killed, counted during one run.

A point is an await, a call to a database or broker, or an SQL statement. What a killed process
leaves behind is what it has committed, so passing the same place again without a commit in between
is the same point: killing there would prove nothing new.
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
"""Kind, place, and how often this place was passed, counted from 1."""

Kill = Point | int | None
"""Where a run is killed: at this point, at the n-th of all points, or nowhere."""


@dataclass(eq=False)
class WorkerRun:
    """One run of a worker: its crash points so far, and what the harness keeps for it."""

    kill: Kill = None
    exits: bool = True
    """Whether a kill ends the process. Otherwise none of the worker's steps runs any more, which
    looks the same from outside and allows a second worker in the same process."""
    counts: bool = True
    """Whether its points are counted. A run that only recovers does without, which saves a sixth of
    its time."""
    points: list[Point] = field(default_factory=list)
    commits: int = 0
    dead: bool = False
    asking: int = 0
    """How many answers from servers are outstanding."""
    connections: list[Any] = field(default_factory=list)
    paused: bool = False
    held: list[tuple[Callable[..., object], tuple[Any, ...], Context]] = field(default_factory=list)
    """The callbacks that are due but not run, because the worker is dead or paused."""
    kept: list[Any] = field(default_factory=list)
    """References to the tasks of a dead worker: collecting them would run their clean-up, which a
    kill does not do."""
    on_point: Callable[[Point], None] = lambda _: None
    _passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    _seen_at: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return not (self.dead or self.paused)

    def reach(self, kind: str, place: str) -> None:
        """Count a point, and die there if the run is to be killed there.

        A run that does not exit the process can be stopped only between two steps of the loop.
        """
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
        """Count an outstanding answer while the context is open."""
        self.asking += 1
        try:
            yield
        finally:
            self.asking -= 1


CURRENT_RUN: ContextVar[WorkerRun | None] = ContextVar("crash_worker_run", default=None)
"""The run whose step is executing; None for steps of the test itself."""
