"""One server of each kind for all processes of a test run.

With pytest-xdist, tests run in several processes. A RabbitMQ and a PostgreSQL for each of them
would cost more than the parallel run saves. So the controlling process, which outlives the others,
owns the servers, and the workers request them through a socket in a private folder:

- a worker sends `{"kind": "redis", "way": "container"}`;
- the answer is `{"server": {"kind": …}}` once started, or `{"reasons": […]}` if there is none.

The process that forks commands (`tests.integration.forks`) is shared in the same way: the answer to
`{"forks": true}` is `{"address": …}`.

A server is started at the first request, and stopped at the end of the run. No test kills one of
these, so their data is in memory, and PostgreSQL does not wait for a disk: both would cost time
hundreds of times, for the files of each new database and for the queues of each test.
"""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

from eventmesh.testing.servers import Server, ServerMissing, Way, serve
from eventmesh.testing.servers.postgres_server import execute
from tests.integration.forks import ForkServer
from tests.support.own_loop import run_on_own_loop

Origin = Callable[[str], None]
"""Gets a line about a server that was started or is missing."""


class ServerPool:
    """Servers by kind and way, each started once; may be used from several threads."""

    def __init__(self, tell: Origin) -> None:
        self._tell = tell
        self._started: list[ExitStack] = []
        """Each stops a server."""
        self._found: dict[tuple[str, Way], Server | ServerMissing] = {}
        self._adding = threading.Lock()
        self._locks: dict[tuple[str, Way], threading.Lock] = {}
        self._forks: ForkServer | None = None

    def find(self, kind: str, way: Way) -> Server | ServerMissing:
        """The server, or the reasons why it is missing; waits while another thread starts it."""
        asked = kind, way
        with self._adding:
            starting = self._locks.setdefault(asked, threading.Lock())
        with starting:
            if asked not in self._found:
                self._found[asked] = self._start(kind, way)
            return self._found[asked]

    def forks(self) -> str:
        """The address of the process that forks commands; starts it at the first call."""
        with self._adding:
            if self._forks is None:
                self._forks = ForkServer()
                stack = ExitStack()
                stack.callback(self._forks.close)
                self._started.append(stack)
            return self._forks.address

    def close(self) -> None:
        """Stop all servers, at the same time."""
        with ThreadPoolExecutor() as threads:
            for _ in threads.map(ExitStack.close, self._started):
                pass

    def _start(self, kind: str, way: Way) -> Server | ServerMissing:
        with ExitStack() as stack:
            try:
                server = stack.enter_context(serve(kind, way=way, in_memory=True))
                if (kind, way) == ("postgres", "container"):  # a private one does not wait anyway
                    for statement in WITHOUT_WAITING:
                        run_on_own_loop(partial(execute, server.url, statement))
            except ServerMissing as missing:
                self._tell(f"{kind} ({way}): MISSING. {'; '.join(missing.reasons)}")
                return missing
            with self._adding:
                self._started.append(stack.pop_all())
        self._tell(f"{kind} {server.version or 'given'}: {server.origin}")
        return Server(**{name: getattr(server, name) for name in _FIELDS})  # which nobody can stop


class _Answering(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    pool: ServerPool


class _Question(socketserver.StreamRequestHandler):
    server: _Answering

    def handle(self) -> None:
        answer = self._answer(json.loads(self.rfile.readline()))
        self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if "forks" in asked:
            return {"address": self.server.pool.forks()}
        found = self.server.pool.find(asked["kind"], asked["way"])
        if isinstance(found, ServerMissing):
            return {"reasons": found.reasons}
        return {"server": {name: getattr(found, name) for name in _FIELDS}}


WITHOUT_WAITING = ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

_FIELDS = ("kind", "url", "origin", "version")


@contextmanager
def answering(pool: ServerPool) -> Iterator[Path]:
    """Answer requests for the pool's servers while the context is open; yields the socket's
    path."""
    with tempfile.TemporaryDirectory(prefix="eventmesh-servers-") as folder:
        path = Path(folder) / "socket"
        with _Answering(str(path), _Question) as server:
            server.pool = pool
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield path
            finally:
                server.shutdown()
                thread.join()


def ask(path: Path, kind: str, way: Way) -> Server | ServerMissing:
    """Request a server from the controlling process; returns it, or the reasons why it is
    missing."""
    answer = _ask(path, {"kind": kind, "way": way})
    if "reasons" in answer:
        return ServerMissing(kind, answer["reasons"])
    return Server(**answer["server"])


def ask_for_forks(path: Path) -> str:
    """The address of the process that forks commands for all workers."""
    return str(_ask(path, {"forks": True})["address"])


def _ask(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    with socket(AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(json.dumps(asked).encode() + b"\n")
        with connection.makefile("rb") as answers:
            answer: dict[str, Any] = json.loads(answers.readline())
    return answer
