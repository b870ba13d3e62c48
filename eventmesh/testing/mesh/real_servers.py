"""The servers on which a real mesh runs: found or started once for all tests, shared by name.

Each test has a prefix of its own on the broker, and new databases; both are deleted after it. Where
servers come from is told by `eventmesh.testing.servers`: from the environment, a container or a
binary of this machine.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from eventmesh.errors import UsageError
from eventmesh.redact import redact
from eventmesh.testing.mesh.leftovers import Leftovers, delete
from eventmesh.testing.servers import Server, serve
from eventmesh.testing.servers.databases import create_database, drop_database

T = TypeVar("T")

BROKERS = ("memory", "sqlite", "redis", "rabbitmq")
DATABASES = ("sqlite", "postgresql", "mariadb")
_KINDS = {"postgresql": "postgres", "mariadb": "mariadb"}
"""The kind of server, by what the scheme of its URL begins with."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The broker and the kind of database that tests ask for: names, or URLs of servers."""

    broker: str = "memory"
    database: str = "sqlite"

    def __post_init__(self) -> None:
        for what, value, names in (
            ("broker", self.broker, BROKERS),
            ("database", self.database, DATABASES),
        ):
            if value not in names and "://" not in value:
                raise UsageError(
                    f"There is no {what} {value!r} for a mesh: write {', '.join(names)}, or the "
                    f"URL of a server."
                )
        if "://" in self.database:
            kind_of(self.database)

    @property
    def is_virtual(self) -> bool:
        """Whether nothing real is asked for, so that time can be virtual."""
        return self == Wanted()


def kind_of(url: str) -> str:
    """The kind of database server at this URL; UsageError for another."""
    kind = _KINDS.get(urlsplit(url).scheme.partition("+")[0])
    if kind is None:
        raise UsageError(
            f"{redact(url)!r} is not a server on which databases can be made for tests: it begins "
            f"with postgresql:// or mariadb://. For files write sqlite."
        )
    return kind


class RunningServers:
    """The servers of a test session, each found or started when it is first asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._found: dict[str, Server] = {}

    def find(self, kind: str) -> Server:
        """ServerMissing if there is none."""
        if kind not in self._found:
            self._found[kind] = self._stack.enter_context(serve(kind))
        return self._found[kind]

    def close(self) -> None:
        """Stop what was started."""
        self._stack.close()


class MeshServers:
    """A broker and databases for one test: `broker_url`, with names that begin with `prefix`, and
    `new_database()`, which returns the URL of a new, empty database each time."""

    def __init__(self, wanted: Wanted, running: RunningServers, folder: Path) -> None:
        self.prefix = f"t{secrets.token_hex(6)}"
        match wanted.broker:
            case "memory":
                self.broker_url = "memory://"
            case "sqlite":
                self.broker_url = f"sqlite:///{folder}/broker.db"
            case "redis" | "rabbitmq":
                self.broker_url = running.find(wanted.broker).url
            case _:
                self.broker_url = wanted.broker
        self._server: Server | None = None
        if "://" in wanted.database:
            self._server = Server(kind_of(wanted.database), wanted.database, "given")
        elif wanted.database != "sqlite":
            self._server = running.find(_KINDS[wanted.database])
        self._folder = folder
        self._databases: list[str] = []
        self.leftovers = Leftovers(self.broker_url, self.prefix)
        """What is to be deleted from the broker."""

    def new_database(self) -> str:
        """The URL of a new database, which is deleted after the test."""
        if self._server is None:
            return f"sqlite:///{self._folder}/{secrets.token_hex(8)}.db"
        server = self._server
        url = in_thread(lambda: create_database(server))
        self._databases.append(url)
        return url

    def close(self) -> None:
        """Delete all that was made."""
        if self._server is not None:
            server, urls = self._server, self._databases
            in_thread(lambda: _drop(server, urls))
        in_thread(lambda: delete(self.leftovers))


async def _drop(server: Server, urls: Sequence[str]) -> None:
    for url in urls:
        await drop_database(server, url)


def in_thread(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine on an event loop in a thread, and wait for it: this thread may have one that
    is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(make())).result()
