"""Private Redis servers with any settings, for tests that a shared Redis cannot serve.

They run from the image EVENTMESH_TEST_REDIS_IMAGE on the host's network, those of a test in one
container; otherwise from the binary on this machine. Each ends when its standard input is closed,
so it also ends when the tests are killed.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from eventmesh.testing.servers import required
from eventmesh.testing.servers.processes import free_port

TIMEOUT_SECONDS = 120.0

# The shell ends when its input is closed, and kills the server.
_SUPERVISED = ["sh", "-c", '"$@" & server=$!; cat; kill -9 $server; wait', "sh"]


class Node:
    """A redis-server with its own folder, port and password."""

    def __init__(self, folder: Path, *arguments: str, tls: bool = False, **settings: str) -> None:
        self.client_options: dict[str, Any] = {}
        self.port = free_port()
        self.password = secrets.token_hex(8)
        self.folder = folder
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self.place: list[str] = []
        """What its command is preceded by: the words that execute it in a container, or nothing."""
        (folder / "data").mkdir(parents=True)
        self._log = folder / "redis.log"
        self.settings = {
            "bind": "127.0.0.1",
            ("tls-port" if tls else "port"): str(self.port),
            "requirepass": self.password,
            "dir": str(folder / "data"),
            "enable-debug-command": "yes",
            "enable-protected-configs": "yes",
            "save": '""',
        } | {name.replace("_", "-"): value for name, value in settings.items()}

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def launch(self, **changes: str) -> None:
        """Start it, without waiting until it answers."""
        assert self._process is None
        settings = self.settings | {name.replace("_", "-"): text for name, text in changes.items()}
        configuration = self.folder / "redis.conf"
        configuration.write_text("".join(f"{name} {text}\n" for name, text in settings.items()))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a server that _place found
                [*self.place, *_SUPERVISED, "redis-server", str(configuration), *self._arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )

    def start(self, **changes: str) -> Node:
        self.launch(**changes)
        self.until_it_answers()
        return self

    def until_it_answers(self) -> None:
        try:
            until(lambda: self.ask("PING"), "a Redis that answers")
        except AssertionError as error:
            raise AssertionError(f"{error}; its log: {self._log.read_text()[-2000:]}") from None

    def kill(self) -> None:
        """Kill it by SIGKILL; what it has not written to disk is lost."""
        process, self._process = self._process, None
        if process is not None:
            process.communicate()

    def client(self, **options: Any) -> Redis:
        """A client for the test itself; RESP2, because a Sentinel's replies are then flat."""
        login = {"password": self.password} | self.client_options | options
        never = Retry(NoBackoff(), 0)
        return Redis(host="127.0.0.1", port=self.port, protocol=2, retry=never, **login)

    def tell(self, *command: str | int) -> Any:
        """The answer to a command."""
        with self.client() as client:
            return client.execute_command(*command)

    def ask(self, *command: str | int) -> Any:
        """The answer to a command, or nothing while there is none."""
        with suppress(RedisError):
            return self.tell(*command)
        return None

    def set(self, name: str, value: str | int) -> None:
        self.tell("CONFIG", "SET", name, value)

    def counters(self) -> tuple[int, int] | None:
        """How many connections it has accepted, and how often it has read from one; None while it
        does not answer. Its count of commands has those inside of scripts, too."""
        with suppress(RedisError), self.client() as client:
            stats: Any = client.info("stats")
            return stats["total_connections_received"], stats["total_reads_processed"]
        return None


@contextmanager
def nodes(folder: Path) -> Iterator[Callable[[Node], Node]]:
    """Yields a function that registers a node, which is killed at the end. The nodes' folders are
    in this folder."""
    with ExitStack() as stack:
        place = stack.enter_context(_place(folder))

        def keep(node: Node) -> Node:
            node.place = place
            stack.callback(node.kill)
            return node

        yield keep


@contextmanager
def _place(folder: Path) -> Iterator[list[str]]:
    """Where servers run: yields what their commands are preceded by. Another process in a container
    takes a third of the time of another container."""
    image = os.environ.get("EVENTMESH_TEST_REDIS_IMAGE")
    if image is None:
        if shutil.which("redis-server") is None:
            missing("no redis-server on this machine, and EVENTMESH_TEST_REDIS_IMAGE names none")
        yield []
        return
    name = f"eventmesh-redis-nodes-{secrets.token_hex(6)}"
    run = ["docker", "run", "--rm", "-i", "--network", "host", "--name", name]
    run += ["--user", f"{os.getuid()}:{os.getgid()}", "--label", "eventmesh.testing=redis"]
    run += ["--volume", f"{folder}:{folder}", "--entrypoint", "sh", image, "-c", "echo; cat"]
    with subprocess.Popen(  # noqa: S603 - a container that ends when its input is closed
        run, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as container:
        assert container.stdout is not None
        assert container.stdout.readline(), "the container of the servers did not start"
        yield ["docker", "exec", "-i", name]
        container.communicate()


def missing(what: str) -> None:
    """Skip the test, or fail it where EVENTMESH_TEST_REQUIRE names Redis."""
    if required("redis"):
        pytest.fail(what, pytrace=False)
    pytest.skip(what)


def until(condition: Callable[[], Any], what: str, within: float = TIMEOUT_SECONDS) -> Any:
    """Wait until the condition is true, in tests that are not async; returns its result."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        time.sleep(0.01)
    return result


async def eventually(
    condition: Callable[[], Any], what: str, within: float = TIMEOUT_SECONDS
) -> Any:
    """Like `until`, for async tests."""
    deadline = time.monotonic() + within
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {within:g} s for {what}"
        await asyncio.sleep(0.01)
    return result
