"""An event loop that owns the time and counts every step: nothing on it sleeps and nothing runs in
a thread, so that a run is the same each time, and can be stopped between any two of its steps.

Time jumps to the next timer when there is nothing else to do. What a server is asked is waited for
while the time stands still.
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
from typing import Any

from tests.crash.points import LIFE, Life

PATIENCE = 60.0
"""Real seconds within which a server answers; only a failure takes so long."""

_LOCK_RETRY = 0.001  # virtual seconds between two tries for another's lock
_LOCK_TIMEOUT = 30.0
_BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)


class Stalled(Exception):
    """Nothing can run any more, and no timer will change that."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at this time. With `server`, answers may come from elsewhere, and are waited for."""

    def __init__(self, start: float, *, server: bool) -> None:
        self.now = start
        self._server = server
        self.lives: list[Life] = []
        self.observers: dict[str, Any] = {}
        """The test's own connections, by their URLs."""
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now

    def date(self) -> datetime:
        """The same as a time of day."""
        return _BEGINNING + timedelta(seconds=self.now)

    def call_soon(
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        return super().call_soon(self._step, callback, args, context, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        """Here and now, instead of in a thread."""
        future = self.create_future()
        call_here(future, lambda: func(*args))
        return future

    def resume(self, life: Life) -> None:
        """Let a worker that stood still go on."""
        life.paused, held = False, list(life.held)
        life.held.clear()
        for callback, args, context in held:
            self.call_soon(callback, *args, context=context)

    def _step(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        life = LIFE.get()
        task = getattr(callback, "__self__", None)
        # Anything else is asyncio's own, such as to forget a socket: only tasks do something.
        if life is not None and isinstance(task, asyncio.Task):
            if life.runs:
                life.reach("await", site(task))
                if life.dead:
                    bury(life)
            if not life.runs:
                life.held.append((callback, args, context))
                return
        callback(*args)

    @property
    def waits_for_a_server(self) -> bool:
        return self._server and any(life.asking for life in self.lives if not life.dead)


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0)
        if found or timeout == 0:
            return found
        if self._loop.waits_for_a_server or timeout is None:
            found = super().select(PATIENCE)
            if not found:
                raise Stalled(f"no answer in {PATIENCE:g} s")
            return found
        self._loop.now += timeout
        return []


def call_here(future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
    """Do in a step of its own what else a thread would do. Another's lock is waited for, as it
    would be there, without standing in that other's way."""
    task = asyncio.current_task()
    loop = future.get_loop()
    until = loop.time() + _LOCK_TIMEOUT

    def attempt() -> None:
        life = LIFE.get()
        if life is not None and life.runs:
            life.reach("call", site(task))
            if life.dead:
                bury(life)
        if life is not None and not life.runs:
            life.held.append((attempt, (), contextvars.copy_context()))
            return
        try:
            result = work()
        except sqlite3.OperationalError as error:
            if "locked" in str(error) and loop.time() < until:
                loop.call_later(_LOCK_RETRY, loop.call_soon, attempt)
                return
            _answer(future, error=error)
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            _answer(future, error=error)
        else:
            _answer(future, result)

    loop.call_soon(attempt)


def bury(life: Life) -> None:
    """What the kernel does for a dead process: close what it had open."""
    life.kept.extend(asyncio.all_tasks())
    for connection in life.connections:
        if isinstance(connection, sqlite3.Connection):
            # Closing alone keeps the locks, as long as there is a cursor that was not read to its
            # end, and nothing of what is dead is collected.
            with suppress(sqlite3.ProgrammingError):  # it was closed before
                connection.rollback()
            connection.close()
        else:  # what is left to do then is nobody's life
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


_ROOT = f"{Path(__file__).parents[2] / 'eventmesh'}/"


def site(task: asyncio.Task[Any] | None) -> str:
    """Where in EventMesh's code, or else in whose, this task waits: file:function:line."""
    ours = theirs = ""
    waiting: Any = task.get_coro() if task is not None else None
    while waiting is not None:
        frame = next(
            (
                found
                for name in ("cr_frame", "ag_frame", "gi_frame")
                if (found := getattr(waiting, name, None)) is not None
            ),
            None,
        )
        if frame is not None:
            path = frame.f_code.co_filename
            if path.startswith(_ROOT):
                ours = f"{path.removeprefix(_ROOT)}:{frame.f_code.co_name}:{frame.f_lineno}"
            theirs = theirs or f"{path.rpartition('/')[2]}:{frame.f_code.co_name}"
        waiting = _inner(waiting)
    return ours or theirs


def _inner(waiting: Any) -> Any:
    """What this awaits."""
    for name in ("cr_await", "ag_await", "gi_yieldfrom"):
        if (inner := getattr(waiting, name, None)) is not None:
            return inner
    if type(waiting).__name__ in ("async_generator_asend", "async_generator_athrow"):
        # Which generator it belongs to is not told otherwise.
        return next((each for each in gc.get_referents(waiting) if hasattr(each, "ag_frame")), None)
    return None
