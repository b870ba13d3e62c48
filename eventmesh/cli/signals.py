"""What a worker process is told from outside: to stop, to abort, to load its code anew."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eventmesh.runtime.trial import would_start

_SAME_SIGNAL = 0.5
"""Seconds in which a second signal to the child of a supervisor is the first one told twice: by a
service manager that tells a whole group, and by the parent that passes it on."""


class Signals:
    """The first SIGTERM or SIGINT sets `stop`; the second cancels the task that listens.

    SIGHUP runs `trial`, a command that ends with 0 where the code as it is now could be run, and
    then sets `reload` and `stop`. From a terminal it means that the terminal is gone, and stops.

    A child of a parent leaves SIGHUP to the parent. Its standard input is a pipe from there: what
    is written to it cancels the task, and its end sets `stop`, as the parent is gone, however that
    ended.
    """

    def __init__(self, *, child: bool, trial: Sequence[str]) -> None:
        self.stop = asyncio.Event()
        self.reload = False
        self._child = child
        self._trial = trial
        self._told_at = 0.0
        self._listener: asyncio.Task[object] | None = None
        self._trying: asyncio.Task[None] | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen while the context is open."""
        self._listener = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        if self._child:
            loop.add_reader(sys.stdin.fileno(), self._readable)
        try:
            yield
        finally:
            self._listener = None
            if self._trying is not None:
                self._trying.cancel()
            # Not to be ended by it on the way from this code to the next.
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _told_to_stop(self) -> None:
        now = asyncio.get_running_loop().time()
        same_within = _SAME_SIGNAL if self._child else 0.0
        if not self.stop.is_set():
            self._told_at = now
            self.stop.set()
        elif now - self._told_at >= same_within:
            self._abort()

    def _told_to_reload(self) -> None:
        if self._child or self.stop.is_set():
            return
        if sys.stdin is not None and sys.stdin.isatty():
            self._told_to_stop()
        elif self._trying is None or self._trying.done():
            self._trying = asyncio.ensure_future(self._try_and_reload())

    async def _try_and_reload(self) -> None:
        if await would_start(self._trial):
            self.reload = not self.stop.is_set()
            self.stop.set()

    def _readable(self) -> None:
        if os.read(sys.stdin.fileno(), 1024):
            self.stop.set()
            self._abort()
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.stop.set()

    def _abort(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
