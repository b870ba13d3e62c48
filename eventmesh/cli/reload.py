"""Runs a worker and restarts it whenever a Python file changes, for `eventmesh dev`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from watchfiles import PythonFilter, watch

_CHECK_INTERVAL = 200  # milliseconds between two checks of the stop event


def run_with_reload(command: Sequence[str], root: Path) -> int:
    """Run until SIGTERM, Ctrl-C or the end of the terminal; returns the exit code of the last run.

    A second signal is passed on and aborts a run that does not finish. The command gets an option
    more, `--end-with` with the descriptor of a pipe: at its end, the command must stop, because
    this process was killed. Its standard input is this one's, for a debugger.
    """
    stop = threading.Event()
    run = _Run(command)

    def on_signal(*_: object) -> None:
        if stop.is_set():
            run.child.terminate()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else `nohup` has started it
        signal.signal(signal.SIGHUP, on_signal)
    changes = watch(
        root, watch_filter=PythonFilter(), stop_event=stop, rust_timeout=_CHECK_INTERVAL
    )
    for _ in changes:
        run.end()
        run = _Run(command)
    return run.end()


class _Run:
    """The command, running, and our end of the pipe that it must not outlive."""

    def __init__(self, command: Sequence[str]) -> None:
        theirs, self._ours = os.pipe()
        try:
            # In a new session, so that Ctrl-C reaches the child once, through this process.
            self.child = subprocess.Popen(  # noqa: S603  # our own command
                [*command, f"--end-with={theirs}"], pass_fds=[theirs], start_new_session=True
            )
        finally:
            os.close(theirs)

    def end(self) -> int:
        self.child.terminate()
        code = self.child.wait()
        os.close(self._ours)
        return code
