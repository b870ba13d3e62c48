"""Notices what would escape from the virtual world: threads, sockets, processes, blocking sleeps.

A handler that uses one of them cannot be simulated: its effects would come at a moment that no seed
decides, and a blocking sleep would stop all processes at once. So while `refused` is open, each of
them raises RealWorld where it is used, with the place in the user's code. They are noticed by
CPython's audit events, below any library, and by the virtual loop, which runs no executor and waits
for no socket. Not every version of Python reports threads and sleeps, so these functions are
replaced, too, also where a module has imported `sleep` by its name.

What raises in a handler would be retried like any error of a handler. So whoever opens `refused` is
told as well, and can end the test.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from eventmesh.errors import UsageError

_REFUSED = {
    "_thread.start_joinable_thread": "starts a thread",  # from Python 3.13 on
    "_thread.start_new_thread": "starts a thread",
    "os.exec": "starts a program",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.system": "starts a process",
    "socket.bind": "opens a socket",
    "socket.connect": "connects a socket",
    "socket.getaddrinfo": "looks up a host",
    "socket.sendto": "sends to a socket",
    "subprocess.Popen": "starts a process",
    "time.sleep": "sleeps, which blocks the whole process",
}
_OURS = f"{Path(__file__).parents[2]}/"
_LIBRARY = f"{Path(traceback.__file__).parent}/"


class RealWorld(UsageError):
    """Code in the virtual world used something that has no virtual time."""


Noticed = Callable[[RealWorld], None]

_NOTICED: ContextVar[Noticed | None] = ContextVar("eventmesh_real_world_noticed", default=None)
"""Whom to tell; None while the real world is allowed."""


class _Hook:
    """An audit hook cannot be removed, so that there is one for all runs of a process."""

    is_installed = False

    def __call__(self, name: str, _arguments: tuple[object, ...]) -> None:
        if name in _REFUSED:
            refuse(_REFUSED[name])


_HOOK = _Hook()


@contextmanager
def refused(noticed: Noticed) -> Iterator[None]:
    """While the context is open, threads, sockets, subprocesses and sleeps raise RealWorld, which
    `noticed` is told before."""
    if not _Hook.is_installed:
        _Hook.is_installed = True
        sys.addaudithook(_HOOK)
    token = _NOTICED.set(noticed)
    try:
        with _guarded():
            yield
    finally:
        _NOTICED.reset(token)


class _Sleepers:
    """The modules that have `time.sleep` by its name. Each is looked at once, since there are
    thousands, and this is asked before each run; none, while there are as many as before."""

    def __init__(self) -> None:
        self._seen: dict[str, object] = {}
        self._found: list[Any] = []
        self._number = 0

    def find(self, sleep: object) -> Sequence[Any]:
        if len(sys.modules) == self._number:
            return self._found
        self._number = len(sys.modules)
        new = [(n, each) for n, each in sys.modules.items() if self._seen.get(n) is not each]
        self._seen.update(new)
        self._found += [
            each for _, each in new if getattr(each, "__dict__", {}).get("sleep") is sleep
        ]
        return self._found


_SLEEPERS = _Sleepers()


@contextmanager
def _guarded() -> Iterator[None]:
    """While the context is open, threads and sleeps are noticed by any version of Python."""
    sleep, start = time.sleep, threading.Thread.start

    def refusing_sleep(seconds: float) -> None:
        refuse(_REFUSED["time.sleep"])
        sleep(seconds)

    def refusing_start(thread: threading.Thread) -> None:
        refuse(_REFUSED["_thread.start_new_thread"])
        start(thread)

    having_it = _SLEEPERS.find(sleep)
    for module in having_it:
        module.__dict__["sleep"] = refusing_sleep
    threading.Thread.start = refusing_start  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
        for module in having_it:
            module.__dict__["sleep"] = sleep


@contextmanager
def allowed() -> Iterator[None]:
    """While the context is open, within `refused`, they are allowed: for the kit's own files."""
    token = _NOTICED.set(None)
    try:
        yield
    finally:
        _NOTICED.reset(token)


def refuse(what: str) -> None:
    """RealWorld, if the code that runs now is in the virtual world: it does `what`."""
    noticed = _NOTICED.get()
    if noticed is None:
        return
    hint = (
        "use asyncio.sleep instead"
        if what == _REFUSED["time.sleep"]
        else ("pass what does it to the handler with Depends, and replace it in the test")
    )
    error = RealWorld(
        f"{_place()} {what}. That cannot be simulated, because its effects would come in real "
        f"time: {hint}."
    )
    noticed(error)
    raise error


def _place() -> str:
    """The innermost line of the user's code."""
    for frame in reversed(traceback.extract_stack()):
        path = frame.filename
        if not path.startswith((_OURS, _LIBRARY)) and "site-packages" not in path:
            return f"{path}:{frame.lineno} in {frame.name}"
    return "something"
