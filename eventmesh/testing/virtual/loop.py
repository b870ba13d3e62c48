"""An event loop that owns time: two days take milliseconds, and the same steps in each run.

Time stands still while anything is ready, and jumps to the next timer when nothing is. So nothing
sleeps, and what a task sees of the clock depends on the timers alone, never on the machine.

    ready                  time             what happens
    handler, relay         10.000 s         both take their steps; it stays 10.000 s
    nothing; timer 10.5 s  10.000 → 10.5 s  the timer's callback is ready
    nothing, no timer      10.5 s           Stalled: whoever waits would wait for ever

Steps of tasks belong to processes (see `process`), which can be stopped between any two of them.
Sets of tasks and futures have the same order in each run: their hashes are numbers, not addresses.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import selectors
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import greenlet

from eventmesh.errors import EventMeshError
from eventmesh.testing.virtual import real_world
from eventmesh.testing.virtual.process import CURRENT_PROCESS, Process

BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
"""The date at virtual time 0."""

MOST_TURNS_AT_ONCE = 100_000
"""Turns of the loop without any progress of time: more than that is a task that never waits."""

MOST_IDLE_TURNS = 10_000
"""Timers that are due without anything happening in the mesh: more than that, about half an hour of
a worker that waits, is a test that never ends."""

MOST_TURNS = 1_000_000
"""Timers that are due in all: more than that is a test that never ends."""

ANSWER_LIMIT = 60.0
"""Real seconds within which a server answers; only a failure takes longer."""


class Stalled(EventMeshError):
    """Nothing can run, no timer is pending, and the test still waits for something."""


class NeverEnds(EventMeshError):
    """Something runs again and again, without time going on or without the test ending."""


class VirtualTask(asyncio.Task[Any]):
    """A task of one process, or of the test."""

    process: Process | None
    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualFuture(asyncio.Future[Any]):
    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.SelectorEventLoop):
    """`with_servers` lets answers of real servers in: while one is outstanding, the loop waits for
    it and time stands still."""

    def __init__(self, *, with_servers: bool = False) -> None:
        self.now = 0.0
        self.awaited_answers = 0
        """How many answers of servers are outstanding."""
        self.with_servers = with_servers
        self.on_time: Callable[[float], None] = lambda _: None
        """Called when time has moved on."""
        self.on_write: Callable[[str], None] = lambda _: None
        """Called when a transaction has been committed that wrote to a table of the user's, with
        the path of the database's file."""
        self.changes = Counter[str]()
        """How often something may have changed in each database, by the path of its file."""
        self._numbers = itertools.count(1)
        self._turns = 0
        self._idle_turns = 0
        self._all_turns = 0
        self._idle: list[asyncio.Future[None]] = []
        self._until: float | None = None
        self._sockets = _Selector(self)
        super().__init__(self._sockets)
        self.set_task_factory(_make_task)

    def close(self) -> None:
        """Close it, and let go of those whom it tells: a pool of connections may hold the loop."""
        super().close()
        self.on_time = lambda _: None
        self.on_write = lambda _: None

    def time(self) -> float:
        return self.now

    def date(self) -> datetime:
        """The virtual time as a date."""
        return BEGINNING + timedelta(seconds=self.now)

    def next_number(self) -> int:
        return next(self._numbers)

    def create_future(self) -> asyncio.Future[Any]:
        future = VirtualFuture(loop=self)
        future.number = next(self._numbers)
        return future

    def call_soon(  # type: ignore[override]  # type checkers need not relate the two here
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        context = copy_context() if context is None else context
        process = context.get(CURRENT_PROCESS)
        if process is not None:
            callback, args = _step, (process, callback, args, context)
        if self.is_closed():
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]  # as `_scheduled`
        return handle

    def run_in_executor(  # type: ignore[override]  # type checkers need not relate them here
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """RealWorld in the virtual world."""
        real_world.refuse("runs a function in a thread or another process")
        return super().run_in_executor(executor, func, *args)

    def _add_reader(self, fd: Any, callback: Any, *args: Any) -> Any:
        self._expect_socket(fd)
        return super()._add_reader(fd, callback, *args)  # type: ignore[misc]  # all sockets pass it

    def _add_writer(self, fd: Any, callback: Any, *args: Any) -> Any:
        self._expect_socket(fd)
        return super()._add_writer(fd, callback, *args)  # type: ignore[misc]  # as above

    def _expect_socket(self, fd: int) -> None:
        if not self.with_servers:
            real_world.refuse("waits for a socket")
        self._sockets.processes[fd] = CURRENT_PROCESS.get()

    def progressed(self) -> None:
        """Something has happened: the test is not waiting in vain."""
        self._idle_turns = 0

    def restart_limits(self) -> None:
        """Count anew what must not happen too often, so that a test that was stopped can end."""
        self._turns = self._idle_turns = self._all_turns = 0

    async def idle(self) -> None:
        """Return when nothing is ready, at the time that it is now."""
        waiting = self.create_future()
        self._idle.append(waiting)
        await waiting

    @property
    def next_timer(self) -> float | None:
        """When the next timer is due; None if there is none."""
        timers = self._timers()  # a heap
        if timers and not timers[0].cancelled():
            return timers[0].when()
        return min((each.when() for each in timers if not each.cancelled()), default=None)

    async def pass_time(self, until: float) -> None:
        """Let time go on to the next timer, or to `until` if that comes before, and return when
        nothing is ready then."""
        target = self.next_timer
        self.jump(until if target is None else max(min(until, target), self.now))
        await self.idle()

    def jump(self, to: float) -> None:
        """Set the time forward. Timers between fire now, later than they asked for, as after the
        machine was suspended."""
        if to > self.now:
            self.now = to
            self._turns = 0
            self.on_time(to)

    def _timers(self) -> list[asyncio.TimerHandle]:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return timers

    def _select(self, timeout: float | None) -> None:
        """What happens instead of waiting for sockets."""
        if timeout == 0:
            self._turns += 1
            if self._turns > MOST_TURNS_AT_ONCE:
                raise NeverEnds(
                    f"something runs without end while the time stays {self.now:.3f} s: "
                    f"{_places()}."
                )
            return
        self._all_turns += 1
        self._idle_turns += 1
        if self._idle_turns > MOST_IDLE_TURNS or self._all_turns > MOST_TURNS:
            raise NeverEnds(
                f"the test has not ended after {self.now:,.0f} s of virtual time, and waits. Let "
                f"long times pass with mesh.advance. Its tasks are at {_places()}."
            )
        idle, self._idle = self._idle, []
        for future in idle:
            if not future.done():
                future.set_result(None)
        if idle:
            return
        if timeout is None:
            raise Stalled(f"nothing can happen any more, and the test waits: {_places()}")
        self.jump(self.now + timeout)


class _Selector(selectors.DefaultSelector):
    """Never waits for sockets, unless an answer of a server is outstanding."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self.processes: dict[int, Process | None] = {}
        """Which process waits for a socket, by the number of its file."""

    def select(self, timeout: float | None = None) -> list[Any]:
        loop = self._loop
        if not loop.with_servers:
            loop._select(timeout)
            return []
        found = self._select_of_the_living(0)
        if found or timeout == 0:
            return found
        if loop.awaited_answers:
            found = self._select_of_the_living(ANSWER_LIMIT)
            if not found:
                raise Stalled(f"a server has not answered in {ANSWER_LIMIT:g} s: {_places()}")
            return found
        loop._select(timeout)
        return []

    def _select_of_the_living(self, timeout: float) -> list[Any]:
        """What has happened to sockets, but for those of dead processes, which are forgotten: no
        step follows that would make them less ready, so time would stand still for ever."""
        while found := super().select(timeout):
            living = [each for each in found if not self._is_dead(each[0].fd)]
            for key, _ in found:
                if self._is_dead(key.fd):
                    self.unregister(key.fd)
            if living:
                return living
        return []

    def _is_dead(self, fd: int) -> bool:
        process = self.processes.get(fd)
        return process is not None and process.is_dead


def _make_task(
    loop: asyncio.AbstractEventLoop,
    coroutine: Coroutine[Any, Any, Any] | Generator[Any, Any, Any],
    **options: Any,
) -> asyncio.Task[Any]:
    assert isinstance(loop, VirtualLoop)  # noqa: S101  # it is set on these only
    context = options.get("context")
    task = VirtualTask.__new__(VirtualTask)
    task.number = loop.next_number()
    task.process = (CURRENT_PROCESS if context is None else context).get(
        *(() if context is None else (CURRENT_PROCESS,))
    )
    task.__init__(coroutine, loop=loop, **options)  # type: ignore[misc]  # needs its hash here
    return task


def _step(
    process: Process, callback: Callable[..., object], args: tuple[Any, ...], context: Context
) -> None:
    """Take one step of a process, unless it is stopped."""
    if process.disturbances is not None and process.is_running:
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task):
            process.take_step(task)
    if process.is_running:
        callback(*args)
    else:
        process.held.append((callback, args, context))


def _places() -> str:
    """Where all tasks wait."""
    places = sorted(filter(None, map(place_of, asyncio.all_tasks())))
    return "; ".join(dict.fromkeys(places)) or "nowhere"


_FRAMES = ("cr_frame", "ag_frame", "gi_frame")
_LIBRARIES = (f"{Path(asyncio.__file__).parents[1]}/", "/site-packages/")
_KIT = f"{Path(__file__).parents[1]}/"
_PASSED_THROUGH = ("/eventmesh/persistence/dialects/", "/eventmesh/persistence/database.py")


def place_of(task: asyncio.Task[Any]) -> str:
    """Where a task waits, or runs, as `process: file:line in function`: in the innermost function
    that is neither of a library nor of the kit. Empty if it has not begun."""
    found = _running_frame() if task is asyncio.current_task() else _waiting_frame(task)
    if found is None:
        return ""
    process = getattr(task, "process", None)
    who = f"{process.service}: " if process is not None else ""
    return f"{who}{_file_of(found)}:{found.f_lineno} in {found.f_code.co_name}"


def _file_of(frame: FrameType) -> str:
    """The path of its file from the folder where imports begin: wherever that is, plans that are
    drawn from the places of a run are the same."""
    path = frame.f_code.co_filename
    names = 1 + str(frame.f_globals.get("__name__", "")).count(".") + path.endswith("/__init__.py")
    return "/".join(path.rsplit("/", names)[-names:])


def _running_frame() -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    outside = greenlet.getcurrent().parent  # where SQLAlchemy's own code was called from
    while frame is not None:
        if _is_of_interest(frame.f_code.co_filename):
            return frame
        frame = frame.f_back
        if frame is None and outside is not None:
            frame, outside = outside.gr_frame, outside.parent
    return None


def _waiting_frame(task: asyncio.Task[Any]) -> FrameType | None:
    found = None
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = next((f for name in _FRAMES if (f := getattr(waiting, name, None))), None)
        if frame is not None and _is_of_interest(frame.f_code.co_filename):
            found = frame
        waiting = _inner(waiting)
    return found


@cache
def _is_of_interest(path: str) -> bool:
    is_installed_mesh = "/site-packages/eventmesh/" in path
    if path.startswith("<") or any(each in path for each in (_KIT, *_PASSED_THROUGH)):
        return False
    return is_installed_mesh or not any(library in path for library in _LIBRARIES)


def _inner(waiting: Any) -> Any:
    """The awaitable that this one waits for."""
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if (inner := getattr(waiting, name, None)) is not None:
            return inner
    if type(waiting).__name__ in ("async_generator_asend", "async_generator_athrow"):
        # There is no public way to get its generator.
        return next((each for each in gc.get_referents(waiting) if hasattr(each, "ag_frame")), None)
    return None
