"""A process that has imported all that commands need, and forks a child for each command:

    python -m tests.integration.forks FD

Commands and starting workers spend most of their time importing modules, and tests run hundreds of
them. A forked child behaves like a newly started process: it has its own folder, environment,
output files and process group.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import eventmesh

_ROOT = Path(__file__).parents[2]
_MOST = 1_000_000
"""The maximum size of a request in bytes: a command line and an environment."""


class ForkedProcess:
    """A forked process, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, pid: int, end: int) -> None:
        """`end` is a pipe from which the exit code can be read when the process has exited;
        nothing, if a signal ended it."""
        self.pid = pid
        self.returncode: int | None = None
        self._end = end

    def poll(self) -> int | None:
        """The exit code, if it has exited."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has exited; `TimeoutExpired` after so many seconds."""
        if self.returncode is None:
            ended, _, _ = select.select([self._end], [], [], timeout)
            if not ended:
                raise subprocess.TimeoutExpired("eventmesh", timeout or 0)
            with os.fdopen(self._end, "rb") as end:
                # The pipe ends when the process closes its files, not before.
                self.returncode = int(end.read() or -signal.SIGKILL)
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send it a signal, unless it has exited."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, sig)


class Forks:
    """The tests' end. Requests are sent one at a time; the commands run concurrently."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", "tests.integration.forks", str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def begin(
        self,
        arguments: Sequence[str],
        root: Path,
        environment: Mapping[str, str],
        out: IO[bytes],
        err: IO[bytes],
    ) -> ForkedProcess:
        """Start `eventmesh` with these arguments."""
        reading, writing = os.pipe()
        request = {"arguments": arguments, "root": str(root), "environment": dict(environment)}
        try:
            files = [out.fileno(), err.fileno(), writing]
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
        finally:
            os.close(writing)
        return ForkedProcess(int(self._socket.recv(100)), reading)

    def close(self) -> None:
        self._socket.close()  # the process then exits
        self._process.wait()


def main() -> None:
    import_all()
    gc.freeze()  # a collection in a child would copy all these objects' memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the children
    tests = socket.socket(fileno=int(sys.argv[1]))
    while received := _receive(tests):
        request, files = received
        child = os.fork()
        if not child:
            tests.close()
            _become(request, *files)
        for file in files:
            os.close(file)
        tests.send(str(child).encode())


def import_all() -> None:
    """Import all modules of EventMesh, except those that only some processes can import."""
    for found in pkgutil.walk_packages(eventmesh.__path__, "eventmesh."):
        if not any(part in found.name for part in (".migrations", ".testing", ".integrations")):
            importlib.import_module(found.name)


def _receive(tests: socket.socket) -> tuple[dict[str, Any], Sequence[int]] | None:
    data, files, _, _ = socket.recv_fds(tests, _MOST, array.array("i", [0] * 3).itemsize * 3)
    return (json.loads(data), files) if data else None


def _become(request: Mapping[str, Any], out: int, err: int, tell: int) -> None:
    """Run the command in this process, and exit."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = _text(1, sys.stdout), _text(2, sys.stderr)
    os.chdir(request["root"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv = ["eventmesh", *request["arguments"]]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    sys.path[0] = request["root"]  # as with `python -m`
    code = _run()
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of every program
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(tell, str(code).encode())
    os._exit(code)


def _text(number: int, like: Any) -> io.TextIOWrapper:
    file = open(number, "wb", closefd=False)  # noqa: SIM115  # for as long as the process lives
    return io.TextIOWrapper(
        file, like.encoding, like.errors, line_buffering=number == 2, write_through=False
    )


def _run() -> int:
    from eventmesh.cli.main import main as eventmesh

    try:
        eventmesh()
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:  # noqa: BLE001  # told as Python tells it
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


if __name__ == "__main__":
    main()
