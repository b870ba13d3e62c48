"""Runs a command and starts it again whenever a Python file changes; for `eventmesh dev`."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from watchfiles import PythonFilter, watch

_LOOK_EVERY = 200  # milliseconds between two looks whether to stop


def run_with_reload(command: Sequence[str], root: Path) -> int:
    """Until SIGTERM or Ctrl-C; returns the exit code of the last run. The second signal is passed
    on, and aborts a run that does not finish."""
    stop = threading.Event()
    child = _start(command)

    def told(*_: object) -> None:
        if stop.is_set():
            child.terminate()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    changes = watch(root, watch_filter=PythonFilter(), stop_event=stop, rust_timeout=_LOOK_EVERY)
    for _ in changes:
        child.terminate()
        child.wait()
        child = _start(command)
    child.terminate()
    return child.wait()


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # A session of its own, so that a terminal's Ctrl-C reaches it once, through us.
    return subprocess.Popen(command, start_new_session=True)  # noqa: S603  # our own command
