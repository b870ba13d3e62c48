"""Crash points: the places where a worker process can be killed, counted during one run.

A point is an await, a call to a database or broker, or an SQL statement. What a killed process
leaves behind is what it has committed, so passing the same place again without a commit in between
is the same point: killing there would prove nothing new.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from eventmesh.testing.virtual.loop import VirtualLoop, place_of
from eventmesh.testing.virtual.process import CURRENT_PROCESS, Answer, Process

KILLED = 137
"""The exit code of a process that was stopped at its point."""

BETWEEN_STEPS = ("await", "call")
"""The kinds of points at which the event loop has control."""

Point = tuple[str, str, int]
"""Kind, place, and how often this place was passed, counted from 1."""

Kill = Point | int | None
"""Where a run is killed: at this point, at the n-th of all points, or nowhere."""


class WorkerRun(Process):
    """One run of a worker: a process of the virtual world, whose crash points are counted.

    With `exits`, a kill ends the process of the operating system. Otherwise none of the worker's
    steps runs any more, which looks the same from outside and allows a second worker in the same
    process. A run that only recovers does not count, which saves a sixth of its time.
    """

    next_return = None

    def __init__(self, kill_at: Kill = None, *, exits: bool = True, counts: bool = True) -> None:
        super().__init__("worker")
        self.kill_at = kill_at
        self.points: list[Point] = []
        self.commits = 0
        self.on_point: Callable[[Point], None] = lambda _: None
        self._exits = exits
        self._asking = 0
        self._passed = Counter[tuple[str, str]]()
        self._seen_at: dict[tuple[str, str], int] = {}
        if counts:
            self.disturbances = self

    def before_step(self, process: Process, task: asyncio.Task[Any]) -> None:
        if place := place_of(task):
            self.reach("await", place)

    def answer(self, process: Process, server: str, call: str) -> Answer:
        self.reach("call", f"{server}: {call}")
        if call == "COMMIT":
            self.commits += 1
        return Answer()

    def copies(self, number: int) -> int:
        return 1

    def reach(self, kind: str, place: str) -> None:
        """Count a point, and die there if the run is to be killed there.

        A run that does not exit the process can be stopped only between two steps of the loop.
        """
        if self.disturbances is None or not self.is_running:
            return
        if not self._exits and kind not in BETWEEN_STEPS:
            return
        if self._seen_at.get((kind, place)) == self.commits:
            return
        self._seen_at[kind, place] = self.commits
        self._passed[kind, place] += 1
        point = (kind, place, self._passed[kind, place])
        self.points.append(point)
        self.on_point(point)
        if self.kill_at in (point, len(self.points)):
            if self._exits:
                os._exit(KILLED)
            self.kill()

    def kill(self, living: Iterable[asyncio.Task[Any]] | None = None) -> None:
        the_loop().awaited_answers -= self._asking
        super().kill(living)

    @contextmanager
    def asks(self) -> Iterator[None]:
        """Count an outstanding answer of a server while the context is open."""
        self._asking += 1
        the_loop().awaited_answers += 1
        try:
            yield
        finally:
            if not self.is_dead:
                self._asking -= 1
                the_loop().awaited_answers -= 1


def current_run() -> WorkerRun | None:
    """The run whose step is executing; None for steps of the test itself."""
    process = CURRENT_PROCESS.get()
    return process if isinstance(process, WorkerRun) else None


def the_loop() -> VirtualLoop:
    loop = asyncio.get_event_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
