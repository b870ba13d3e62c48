"""A process that has imported all that commands need, and forks a child for each command:

    python -m tests.integration.forks LISTENING LIFELINE

Commands and starting workers spend most of their time importing modules, and tests run hundreds of
them. A forked child behaves like a newly started process: it has its own folder, environment,
output files and process group. A command is `eventmesh` with arguments, `pytest` with arguments, or
a Python file with arguments.

One such process serves all processes of a test run, each on a connection of its own. It ends when
nobody holds the other end of its lifeline any more.

A supervisor of workers and the demo start workers themselves, by `asyncio.create_subprocess_exec`.
Where they are forked, these are forked too (`Launcher`).
"""

from __future__ import annotations

import array
import asyncio
import atexit
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NoReturn

import typer

import eventmesh
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database

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


class ForkServer:
    """Starts the process that forks; it ends on `close`, or with this process."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="eventmesh-forks-")
        self.address = str(Path(self._folder.name) / "socket")
        """Where `Forks` connects to, at once: it waits until the process has imported all."""
        reading, self._lifeline = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(self.address)
            listening.listen()
            inherited = [listening.fileno(), reading]
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                [sys.executable, "-m", "tests.integration.forks", *map(str, inherited)],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=inherited,
            )
        os.close(reading)

    def close(self) -> None:
        os.close(self._lifeline)
        self._process.wait()
        self._folder.cleanup()


class Forks:
    """The tests' end. Requests are sent one at a time; the commands run concurrently."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(address)

    def begin(
        self,
        command: Sequence[str],
        root: Path,
        environment: Mapping[str, str],
        out: IO[bytes],
        err: IO[bytes],
    ) -> ForkedProcess:
        """Start a command: `eventmesh`, `pytest` or a Python file, with its arguments."""
        reading, writing = os.pipe()
        request = {"command": command, "root": str(root), "environment": dict(environment)}
        try:
            files = [out.fileno(), err.fileno(), writing]
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
        finally:
            os.close(writing)
        return ForkedProcess(int(self._socket.recv(100)), reading)

    def close(self) -> None:
        self._socket.close()


class LaunchedProcess:
    """A process that a `Launcher` has started, with what asyncio uses of `subprocess.Popen`. Its
    parent is the process that asked for it, so asyncio waits for it as for every other child."""

    def __init__(self, pid: int, stdin: IO[bytes] | None) -> None:
        self.pid = pid
        self.returncode: int | None = None  # set by asyncio
        self.stdin, self.stdout, self.stderr = stdin, None, None

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Launcher:
    """Starts the workers of a forked supervisor or demo as forks.

    A process that already has threads and an event loop is not safe to fork. So it makes, before it
    does anything else, a child that only forks: the launcher. What the launcher forks becomes a
    child of the supervisor, because an orphan goes to the nearest ancestor that takes orphans.
    """

    def __init__(self, closing: int) -> None:
        """`closing` is a file that only this process may keep open."""
        ctypes.CDLL(None).prctl(_TAKE_ORPHANS, 1, 0, 0, 0)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            os.close(closing)
            self._socket.close()
            _launch(theirs)
        theirs.close()

    def install(self) -> None:
        """From now on, start workers by this launcher and every other program as usual."""
        usual = subprocess.Popen

        def popen(args: Any, **options: Any) -> Any:
            special = (subprocess.PIPE, subprocess.DEVNULL, subprocess.STDOUT)
            output = (options.get("stdout"), options.get("stderr"))
            if list(args[:3]) != _EVENTMESH or any(each in special for each in output):
                return usual(args, **options)
            return self._start(args[2:], **options)

        subprocess.Popen = popen  # type: ignore[assignment, misc]

    def _start(
        self,
        command: Sequence[str],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        **_: Any,
    ) -> LaunchedProcess:
        request = {
            "command": command,
            "root": str(Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "numbers": [0, 1, 2, *pass_fds],
        }
        pipe: IO[bytes] | None = None
        with ExitStack() as stack:
            if stdin == subprocess.PIPE:
                stdin, writing = os.pipe()
                stack.callback(os.close, stdin)
                pipe = os.fdopen(writing, "wb", buffering=0)
            given = zip((stdin, stdout, stderr), (0, 1, 2), strict=True)
            files = [own if file is None else _number(file) for file, own in given]
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, *pass_fds])
            return LaunchedProcess(int(self._socket.recv(100)), pipe)


_TAKE_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER, in <linux/prctl.h>
_EVENTMESH = [sys.executable, "-m", "eventmesh"]

LAUNCHER = "launcher"
"""The name of a launcher's process, in /proc."""


def _launch(supervisor: socket.socket) -> NoReturn:
    """Fork what the supervisor asks for, until it is gone. Signals to its process group are not for
    this process."""
    Path("/proc/self/comm").write_text(LAUNCHER)
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while received := _receive(supervisor):
        request, files = received
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if child:
                os.write(tell, str(child).encode())
                os._exit(0)
            supervisor.close()
            _become_worker(request, files, [told, tell])
        for file in (*files, tell):
            os.close(file)
        os.waitpid(between, 0)  # the child is the supervisor's then
        with os.fdopen(told, "rb") as pid:
            supervisor.send(pid.read(100))
    os._exit(0)


_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _become_worker(
    request: Mapping[str, Any], files: Sequence[int], unwanted: Sequence[int]
) -> NoReturn:
    """Run the supervisor's command in this process, and exit. Each file gets the number that the
    command knows it by."""
    os.setsid()
    Path("/proc/self/comm").write_text("python")
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    kept = [fcntl.fcntl(file, fcntl.F_DUPFD, _OUT_OF_THE_WAY) for file in files]
    for file in (*files, *unwanted):
        os.close(file)
    for file, number in zip(kept, request["numbers"], strict=True):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False))  # noqa: SIM115
    os._exit(_run(request))


_OUT_OF_THE_WAY = 500
"""A number above those of all files that a command is given."""


def _number(file: Any) -> int:
    """The number of an open file."""
    return file if isinstance(file, int) else int(file.fileno())


def main() -> None:
    gc.disable()
    import_all()
    build_commands()
    migrate_once()
    gc.collect()
    gc.enable()
    gc.freeze()  # a collection in a child would copy all these objects' memory
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the children
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))


def serve(listening: socket.socket, lifeline: int) -> None:
    """Fork what is asked for on each connection, until the lifeline ends."""
    clients: list[socket.socket] = []
    while True:
        ready, _, _ = select.select([lifeline, listening, *clients], [], [])
        if lifeline in ready:
            return
        if listening in ready:
            clients.append(listening.accept()[0])
        for client in [each for each in clients if each in ready]:
            received = None
            with suppress(ConnectionError):  # a process of the tests that was killed
                received = _receive(client)
            if received is None:
                clients.remove(client)
                client.close()
                continue
            request, files = received
            child = os.fork()
            if not child:
                os.close(lifeline)
                for each in (listening, *clients):
                    each.close()
                _become(request, *files)
            for file in files:
                os.close(file)
            with suppress(ConnectionError):
                client.send(str(child).encode())


_LOADED_WHEN_NEEDED = (
    "aiosqlite",
    "alembic.command",
    "alembic.config",
    "eventmesh.testing.mesh.running",
    "eventmesh.testing.plugin",
    "eventmesh.testing.simulation.search",
    "faststream.rabbit",
    "faststream.redis",
    "faststream.specification",
    "hypothesis.strategies",
    "jsonschema_rs",
    "pytest_asyncio.plugin",
    "referencing.jsonschema",
    "time_machine",
    "uvloop",
)
"""What commands, workers and pytest import only where they need it, and which takes longest of what
they do then."""


def import_all() -> None:
    """Import all modules of EventMesh, except those that only some processes can import, and what
    these import later."""
    for found in pkgutil.walk_packages(eventmesh.__path__, "eventmesh."):
        if not any(part in found.name for part in (".migrations", ".testing", ".integrations")):
            importlib.import_module(found.name)
    for name in _LOADED_WHEN_NEEDED:
        importlib.import_module(name)


def build_commands() -> None:
    """Let Typer read the signatures of all commands once, instead of once in each child."""
    from eventmesh.cli.main import app

    typer.main.get_command_from_info = cache(typer.main.get_command_from_info)
    typer.main.get_command(app)


def migrate_once() -> None:
    """Let Alembic and SQLAlchemy prepare what they keep for the next migration."""

    async def migrate(folder: str) -> None:
        database = Database(f"sqlite+aiosqlite:///{folder}/warm.db", service="warm")
        await migration.upgrade(database)
        await database.close()

    with TemporaryDirectory() as folder:
        asyncio.run(migrate(folder))
    asyncio.set_event_loop(None)


def _receive(end: socket.socket) -> tuple[dict[str, Any], Sequence[int]] | None:
    data, files, _, _ = socket.recv_fds(end, _MOST, array.array("i", [0] * 8).itemsize * 8)
    return (json.loads(data), files) if data else None


def _become(request: Mapping[str, Any], out: int, err: int, tell: int) -> NoReturn:
    """Run the command in this process, and exit."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for file, number in ((out, 1), (err, 2)):
        os.dup2(file, number)
        os.close(file)
    if _starts_workers(request["command"]):
        Launcher(closing=tell).install()
    code = _run(request)
    os.write(tell, str(code).encode())
    os._exit(code)


def _starts_workers(command: Sequence[str]) -> bool:
    return command[:2] == ["eventmesh", "demo"] or (
        command[:2] == ["eventmesh", "worker"] and "--no-supervise" not in command
    )


def _run(request: Mapping[str, Any]) -> int:
    """Run a command in this process, whose files are open, up to its end; returns its exit
    code."""
    sys.stdout, sys.stderr = _text(1, sys.stdout), _text(2, sys.stderr)
    os.chdir(request["root"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv = list(request["command"])
    run = _MODULES.get(sys.argv[0])
    sys.orig_argv = [sys.executable, *(["-m"] if run else []), *sys.argv]
    sys.path[0] = request["root"]  # as with `python -m`, or a file in this folder
    code = _exit_code(run or _file)
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of every program
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _text(number: int, like: Any) -> io.TextIOWrapper:
    file = open(number, "wb", closefd=False)  # noqa: SIM115  # for as long as the process lives
    return io.TextIOWrapper(
        file, like.encoding, like.errors, line_buffering=number == 2, write_through=False
    )


def _eventmesh() -> None:
    from eventmesh.cli.main import main as eventmesh

    eventmesh()


def _pytest() -> None:
    import pytest

    # A newly started pytest would have imported its plugins itself.
    already_imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    raise SystemExit(int(pytest.main([*already_imported, *sys.argv[1:]])))


_MODULES = {"eventmesh": _eventmesh, "pytest": _pytest}
"""What runs as `python -m` does."""


def _file() -> None:
    runpy.run_path(sys.argv[0], run_name="__main__")


def _exit_code(run: Callable[[], None]) -> int:
    try:
        run()
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
