"""Runs server programs of this machine, isolated from the machine's own servers."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from eventmesh.testing.servers.answering import START_TIMEOUT, EndedEarly, Unavailable, one_line

STOP_TIMEOUT = 20.0
"""Seconds that a private server has to stop."""

PORTS = range(20_000, 32_000)
"""Ports for servers, below the ephemeral range. An ephemeral port of a stopped server could go
to a client, even to one that tries to reach this server and would then be connected to itself."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user account of this machine."""

    user: int
    group: int


@dataclass(frozen=True, slots=True)
class Running:
    """A process, and the file with its output."""

    process: subprocess.Popen[bytes]
    output: Path

    def check(self) -> None:
        """Raise EndedEarly if it has exited."""
        code = self.process.poll()
        if code is not None:
            raise EndedEarly(f"code {code}, {_last_words(self.output)}")

    def kill(self) -> None:
        """Kill its process group with SIGKILL."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)  # not reaped: the id is its own
            self.process.wait()


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
    ending: signal.Signals = signal.SIGTERM,
) -> Iterator[Running]:
    """Run a process, stopped on leaving, with its output in a file of the folder."""
    output = folder / f"{Path(command[0]).name}.output"
    with output.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 - a program that find_binary found
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**_bare_environment(folder), **(environment or {})},
            user=account.user if account else None,
            group=account.group if account else None,
            extra_groups=[] if account else None,
            process_group=0,
        )
    started = Running(process, output)
    try:
        yield started
    finally:
        process.send_signal(ending)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        started.kill()


def run_to_end(command: Sequence[str], folder: Path, account: Account | None) -> None:
    """Run a program to its end; Unavailable if it fails or takes too long."""
    with running(command, folder, account=account) as started:
        try:
            code = started.process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{command[0]} did not exit in {START_TIMEOUT:.0f} s") from error
    if code != 0:
        raise Unavailable(f"{command[0]} exited with code {code}, {_last_words(started.output)}")


def find_binary(name: str, places: Sequence[str]) -> str:
    """The path of a program: from the first of `places` that has it.

    A place is a folder, a glob pattern of folders (highest version first), or `$PATH`.
    """
    if os.name != "posix":
        raise Unavailable("private servers need a POSIX system")
    for place in places:
        path = os.environ.get("PATH", "") if place == "$PATH" else os.pathsep.join(_expand(place))
        if path and (binary := shutil.which(name, path=path)):
            return binary
    raise Unavailable(f"there is no {name} in {', '.join(places)}")


CLAIM_TIME = 600.0
"""Seconds for which nobody else is given a port: by then, a server listens on it."""

CLAIMS = "eventmesh-ports-"
"""What the name of the folder of claims, in that of temporary files, begins with. It stays."""


def free_port() -> int:
    """A port that is free on every address, and that no process of this user was given by this
    function in the last ten minutes."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """As many in a row, each as of `free_port`."""
    while True:
        first = random.choice(PORTS[: len(PORTS) - count])  # noqa: S311 - it is no secret
        ports = list(range(first, first + count))
        if all(_is_free(port) and _claim(port) for port in ports):
            return ports


def _is_free(port: int) -> bool:
    with socket.socket() as attempt, suppress(OSError):
        attempt.bind(("", port))
        return True
    return False


def _claim(port: int) -> bool:
    """Whether nobody else has claimed it lately: a claim is a file, and its age that of the
    claim."""
    claims = Path(tempfile.gettempdir(), f"{CLAIMS}{os.getuid()}")
    claims.mkdir(mode=0o700, exist_ok=True)
    for each in claims.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - each.stat().st_mtime > CLAIM_TIME:
                each.unlink()
    try:
        (claims / str(port)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def unprivileged_account() -> Account | None:
    """Whom to run a program as that refuses to run as root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    import pwd  # is not there on Windows

    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise Unavailable("we are root, and there is no user postgres or nobody to run it as")


MEMORY = Path("/dev/shm")  # noqa: S108  # the folders in it have names that nobody can guess
"""Linux's file system in memory."""

NEEDED_BYTES = 2 * 1024**3
"""More than the largest server of a test run stores. Docker gives a container 64 MB by default."""


@contextmanager
def temporary_folder(
    kind: str, account: Account | None = None, *, in_memory: bool = False
) -> Iterator[Path]:
    """A temporary folder that only this account can read, removed on leaving. With `in_memory`, it
    is on Linux's file system in memory, if there is space."""
    parent = MEMORY if in_memory and has_space(MEMORY) else None
    with tempfile.TemporaryDirectory(prefix=f"eventmesh-{kind}-", dir=parent) as name:
        if account is not None:
            os.chown(name, account.user, account.group)
        yield Path(name)


def has_space(folder: Path) -> bool:
    """Whether a server's data can be there."""
    return os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > NEEDED_BYTES


def _expand(pattern: str) -> list[str]:
    folders = Path("/").glob(pattern.lstrip("/"))
    return [str(folder) for folder in sorted(folders, key=_numbers_in, reverse=True)]


def _numbers_in(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def _bare_environment(folder: Path) -> dict[str, str]:
    """No PGPORT, RABBITMQ_* or the like of the machine's own servers; its home is the folder."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LC_ALL": "C"}


def _last_words(output: Path) -> str:
    """The end of what a process wrote, on one line."""
    return f"saying: {one_line(output.read_text(errors='replace')[-500:])}"
