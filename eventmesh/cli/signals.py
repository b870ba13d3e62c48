"""Signals of a worker process: stop, abort, and reload the code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eventmesh.runtime.trial import would_start

_SAME_SIGNAL = 0.5
"""Seconds within which a second signal to a supervisor's child counts as the first one, received
twice: a service manager may signal the whole process group, and the parent passes it on as well."""


class Signals:
    """The first SIGTERM or SIGINT sets `stopping`; the second cancels the task in `handled`.

    SIGHUP runs `trial`, a command that exits with 0 if the current code can start, and then sets
    `reload` and `stopping`. In a terminal, SIGHUP means that the terminal was closed, and stops.

    The child of a supervisor or of `eventmesh dev` leaves SIGHUP to its parent. `parent` is the
    file descriptor of a pipe from that: anything written to it cancels the task, and its end sets
    `stopping`, because the parent is gone.
    """

    def __init__(self, *, parent: int | None, trial: Sequence[str]) -> None:
        self.stopping = asyncio.Event()
        self.reload = False
        self._parent = parent
        self._trial = trial
        self._stopped_at = 0.0
        self._task: asyncio.Task[object] | None = None
        self._reloading: asyncio.Task[None] | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals while the context is open."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        if self._parent is not None:
            loop.add_reader(self._parent, self._on_parent, self._parent)
        try:
            yield
        finally:
            self._task = None
            if self._reloading is not None:
                self._reloading.cancel()
            # SIGHUP must not end the process between this code and the next.
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _on_stop_signal(self) -> None:
        now = asyncio.get_running_loop().time()
        same_within = 0.0 if self._parent is None else _SAME_SIGNAL
        if not self.stopping.is_set():
            self._stopped_at = now
            self.stopping.set()
        elif now - self._stopped_at >= same_within:
            self._abort()

    def _on_reload_signal(self) -> None:
        if self._parent is not None or self.stopping.is_set():
            return
        if sys.stdin is not None and sys.stdin.isatty():
            self._on_stop_signal()
        elif self._reloading is None or self._reloading.done():
            self._reloading = asyncio.ensure_future(self._reload_if_it_starts())

    async def _reload_if_it_starts(self) -> None:
        if await would_start(self._trial):
            self.reload = not self.stopping.is_set()
            self.stopping.set()

    def _on_parent(self, descriptor: int) -> None:
        if os.read(descriptor, 1024):
            self.stopping.set()
            self._abort()
        else:
            asyncio.get_running_loop().remove_reader(descriptor)
            self.stopping.set()

    def _abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
