"""An event loop with virtual time, on which every step of a worker is a crash point.

Nothing on it sleeps or runs in a thread: time jumps to the next timer when nothing else is ready.
A run therefore takes the same steps each time and can be stopped between any two of them. While
an answer from a server is outstanding, the loop waits for it and virtual time stands still.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import selectors
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from tests.crash.crash_points import CURRENT_RUN, WorkerRun

ANSWER_LIMIT = 60.0
"""Real seconds within which a server answers; only a failure takes longer."""

_LOCK_RETRY = 0.001  # virtual seconds between two attempts to get a lock
_LOCK_TIMEOUT = 30.0
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Stalled(Exception):
    """Nothing can run, and no timer is pending."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`start` is the first virtual time. With `server`, answers from servers are waited for."""

    def __init__(self, start: float, *, server: bool) -> None:
        self.now = start
        self._server = server
        self.runs: list[WorkerRun] = []
        self.observers: dict[str, Any] = {}
        """The test's own connections, by their URLs."""
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def date(self) -> datetime:
        """The virtual time as a date."""
        return _BEGINNING + timedelta(seconds=self.now)

    def call_soon(
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        return super().call_soon(self._step, callback, args, context, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        """Run the function on the loop instead of in a thread."""
        future = self.create_future()
        call_here(future, lambda: func(*args))
        return future

    def resume(self, run: WorkerRun) -> None:
        """Let a paused worker continue."""
        run.paused, held = False, list(run.held)
        run.held.clear()
        for callback, args, context in held:
            self.call_soon(callback, *args, context=context)

    def _step(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        run = CURRENT_RUN.get()
        task = getattr(callback, "__self__", None)
        # Only the steps of tasks count; other callbacks are asyncio's own housekeeping.
        if run is not None and isinstance(task, asyncio.Task):
            if run.is_running and run.counts:
                run.reach("await", site(task))
                if run.dead:
                    close_connections(run)
            if not run.is_running:
                run.held.append((callback, args, context))
                return
        callback(*args)

    @property
    def is_waiting_for_server(self) -> bool:
        return self._server and any(run.asking for run in self.runs if not run.dead)


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if self._loop.is_waiting_for_server or timeout is None:
            found = super().select(ANSWER_LIMIT)
            if not found:
                raise Stalled(f"no answer in {ANSWER_LIMIT:g} s")
            return found
        self._loop.now += timeout
        return []


def call_here(future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
    """Run in a step of its own what a thread would run otherwise. If another connection holds the
    lock, try again later, so that the holder can go on."""
    task = asyncio.current_task()
    loop = future.get_loop()
    until = loop.time() + _LOCK_TIMEOUT

    def attempt() -> None:
        run = CURRENT_RUN.get()
        if run is not None and run.is_running and run.counts:
            run.reach("call", site(task))
            if run.dead:
                close_connections(run)
        if run is not None and not run.is_running:
            run.held.append((attempt, (), contextvars.copy_context()))
            return
        try:
            result = work()
        except sqlite3.OperationalError as error:
            if "locked" in str(error) and loop.time() < until:
                loop.call_later(_LOCK_RETRY, loop.call_soon, attempt)
                return
            _answer(future, error=error)
        except BaseException as error:  # noqa: BLE001  # raised to the caller
            _answer(future, error=error)
        else:
            _answer(future, result)

    loop.call_soon(attempt)


def close_connections(run: WorkerRun) -> None:
    """Do what the kernel does for a dead process: close its connections."""
    run.kept.extend(asyncio.all_tasks())
    for connection in run.connections:
        if isinstance(connection, sqlite3.Connection):
            # close() alone would keep the locks while a cursor has unread rows, and the cursors of
            # a dead worker are never collected.
            with suppress(sqlite3.ProgrammingError):  # it is closed already
                connection.rollback()
            connection.close()
        else:  # in a context without a run, so that its callbacks execute
            contextvars.Context().run(connection.abort)


def _answer(
    future: asyncio.Future[Any], result: object = None, error: BaseException | None = None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


_FRAMES = ("cr_frame", "ag_frame", "gi_frame")
_ROOT = f"{Path(__file__).parents[2] / 'eventmesh'}/"


def site(task: asyncio.Task[Any] | None) -> str:
    """Where this task waits, as file:function:line, in EventMesh's code if it is there."""
    ours = theirs = None
    waiting: Any = task.get_coro() if task is not None else None
    while waiting is not None:
        frame = _frame(waiting)
        if frame is not None:
            theirs = theirs or frame
            if frame.f_code.co_filename.startswith(_ROOT):
                ours = frame
        waiting = _inner(waiting)
    if ours is not None:
        code = ours.f_code
        return f"{code.co_filename.removeprefix(_ROOT)}:{code.co_name}:{ours.f_lineno}"
    if theirs is not None:
        return f"{theirs.f_code.co_filename.rpartition('/')[2]}:{theirs.f_code.co_name}"
    return ""


def _frame(waiting: Any) -> FrameType | None:
    """The frame of a coroutine, asynchronous generator or generator that is suspended."""
    for name in _FRAMES:
        if (frame := getattr(waiting, name, None)) is not None:
            found: FrameType = frame
            return found
    return None


def _inner(waiting: Any) -> Any:
    """The awaitable that this one waits for."""
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if (inner := getattr(waiting, name, None)) is not None:
            return inner
    if type(waiting).__name__ in ("async_generator_asend", "async_generator_athrow"):
        # There is no public way to get its generator.
        return next((each for each in gc.get_referents(waiting) if hasattr(each, "ag_frame")), None)
    return None
