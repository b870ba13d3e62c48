"""Runs a worker and restarts it whenever a Python file changes, for `eventmesh dev`."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from watchfiles import PythonFilter, watch

_CHECK_INTERVAL = 200  # milliseconds between two checks of the stop event


def run_with_reload(command: Sequence[str], root: Path) -> int:
    """Run until SIGTERM, Ctrl-C or the end of the terminal; returns the exit code of the last run.

    A second signal is passed on and aborts a run that does not finish. The command's standard input
    is a pipe, at the end of which it must stop: this process was killed.
    """
    stop = threading.Event()
    child = _start(command)

    def on_signal(*_: object) -> None:
        if stop.is_set():
            child.terminate()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup` has started it
        signal.signal(signal.SIGHUP, on_signal)
    changes = watch(
        root, watch_filter=PythonFilter(), stop_event=stop, rust_timeout=_CHECK_INTERVAL
    )
    for _ in changes:
        _end(child)
        child = _start(command)
    return _end(child)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # In a new session, so that Ctrl-C reaches the child once, through this process.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603  # our own command


def _end(child: subprocess.Popen[bytes]) -> int:
    with child:  # closes its standard input, too
        child.terminate()
        return child.wait()
