"""Servers and URLs for tests. A server is started when the first test asks for it, kept for the
session, and named at the end of the session with its version and where it came from."""

from __future__ import annotations

import compileall
import gc
import logging
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

import eventmesh
from eventmesh.cli.garbage import YOUNG
from eventmesh.runtime.declaring.settings import read_env_file
from eventmesh.testing.servers import (
    WAYS,
    Server,
    ServerMissing,
    Way,
    fresh_database,
    required,
)
from tests.integration.forks import Forks
from tests.support.compiled_tests import compile_tests
from tests.support.conformance_table import Table
from tests.support.migrated_databases import MigratedDatabases
from tests.support.shared_servers import ServerPool, answering, ask, ask_for_forks
from tests.support.xdist_groups import GroupScheduling

pytest_plugins = ["tests.support.random_order"]

ORIGINS = pytest.StashKey[list[str]]()
"""One line for each server that a test asked for."""

_HELD = pytest.StashKey[ExitStack]()
"""What the controlling process of pytest-xdist holds for its workers."""

_SOCKET_PATH = pytest.StashKey[Path]()
_SOCKET = "servers_socket"
"""The name under which a worker is told where to ask for servers."""


class Servers:
    """The servers of the run, of each kind at most one in each way."""

    def __init__(self, find: Callable[[str, Way], Server | ServerMissing]) -> None:
        self._find = find

    def find(self, kind: str) -> Server:
        """This server, in the first way that gives one; without any, the test is skipped with the
        reasons, or fails where EVENTMESH_TEST_REQUIRE names it."""
        reasons: list[str] = []
        for way in WAYS:
            found = self._find(kind, way)
            if isinstance(found, Server):
                return found
            reasons += [reason for reason in found.reasons if reason not in reasons]
        missing = ServerMissing(kind, reasons)
        if required(kind):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))

    def had_by(self, kind: str, way: Way) -> Server:
        """This server as it can be had in this way; without it, the test is skipped if there is
        another of its kind, and is treated as without any otherwise."""
        found = self._find(kind, way)
        if isinstance(found, Server):
            return found
        self.find(kind)
        pytest.skip(str(found))


@pytest.fixture(autouse=True)
def unconfigured_logging() -> Iterator[None]:
    """No test meets what another has configured: structlog counts as configured for the rest of the
    process once a test has used `capture_logs`, and a command that is called in this process sends
    all logging to where its output went."""
    structlog.reset_defaults()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Servers of this process, or in a worker of pytest-xdist those of the controlling process."""
    config = request.config
    if (worker := getattr(config, "workerinput", None)) is not None:
        socket_path = Path(worker[_SOCKET])
        yield Servers(lambda kind, way: ask(socket_path, kind, way))
        return
    pool = ServerPool(config.stash[ORIGINS].append)
    yield Servers(pool.find)
    pool.close()


@pytest.fixture(scope="session")
def _mesh_running_servers(servers: Servers) -> Servers:
    """The same servers for the testing kit's fixtures, in the place of some of its own."""
    return servers


@pytest.fixture(scope="session")
def forks(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """Starts commands as forks of one process, which is that of the controlling process, too."""
    with ExitStack() as stack:
        if (worker := getattr(request.config, "workerinput", None)) is not None:
            address = ask_for_forks(Path(worker[_SOCKET]))
        else:
            pool = ServerPool(request.config.stash[ORIGINS].append)
            stack.callback(pool.close)
            address = pool.forks()
        made = Forks(address)
        stack.callback(made.close)
        yield made


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> Server:
    return servers.find("redis")


@pytest.fixture(scope="session")
def rabbitmq_server(servers: Servers) -> Server:
    return servers.find("rabbitmq")


@pytest.fixture(scope="session")
def postgres_server(servers: Servers) -> Server:
    return servers.find("postgres")


@pytest.fixture(scope="session")
def mariadb_server(servers: Servers) -> Server:
    return servers.find("mariadb")


@pytest.fixture
async def mariadb_url(mariadb_server: Server) -> AsyncIterator[str]:
    """A new, empty MariaDB database for this test."""
    async with fresh_database(mariadb_server) as url:
        yield url


@pytest.fixture
async def postgres_url(postgres_server: Server) -> AsyncIterator[str]:
    """A new, empty Postgres database for this test."""
    async with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new, empty SQLite database for this test."""
    return f"sqlite+aiosqlite:///{tmp_path}/service.db"


@pytest.fixture(scope="session")
def migrated_databases(
    tmp_path_factory: pytest.TempPathFactory, servers: Servers
) -> Iterator[MigratedDatabases]:
    """It needs the servers to the end, because it drops its templates on them."""
    made = MigratedDatabases(tmp_path_factory.mktemp("migrated"))
    yield made
    made.close()


@pytest.fixture
async def migrated_postgres_url(
    postgres_server: Server, migrated_databases: MigratedDatabases
) -> AsyncIterator[str]:
    """A new Postgres database for this test, with EventMesh's tables."""
    async with migrated_databases.postgres_url(postgres_server) as url:
        yield url


@pytest.fixture
async def migrated_mariadb_url(
    mariadb_server: Server, migrated_databases: MigratedDatabases
) -> AsyncIterator[str]:
    """A new MariaDB database for this test, with EventMesh's tables."""
    async with migrated_databases.mariadb_url(mariadb_server) as url:
        yield url


@pytest.fixture
def migrated_sqlite_url(tmp_path: Path, migrated_databases: MigratedDatabases) -> str:
    """A new SQLite database for this test, with EventMesh's tables."""
    return migrated_databases.sqlite_url(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database of each kind that a service can own, in turn, with EventMesh's tables."""
    url: str = request.getfixturevalue(f"migrated_{request.param}_url")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """A new, empty database of each kind that a service can own, in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """From "sqlite", "redis" or "amqp" to the URL of such a broker, which several processes can
    use. Servers are shared by the session: name what you make on them at random."""

    def url(broker: str) -> str:
        match broker:
            case "sqlite":
                return f"sqlite:///{tmp_path}/broker.db"
            case "redis":
                server: Server = request.getfixturevalue("redis_server")
            case "amqp":
                server = request.getfixturevalue("rabbitmq_server")
            case _:
                raise ValueError(f"no broker {broker!r}")
        return server.url

    return url


@pytest.fixture(params=["sqlite", "redis", "amqp"])
def durable_broker_url(request: pytest.FixtureRequest, durable_url: Callable[[str], str]) -> str:
    """The URL of each broker that several processes can use, in turn."""
    return durable_url(request.param)


@pytest.fixture(params=["redis", "rabbitmq"])
def broker_server(request: pytest.FixtureRequest) -> Server:
    """Each server that can be a broker, in turn."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    return server


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ORIGINS] = []
    config.pluginmanager.register(Table())
    gc.disable()  # until everything is collected
    # A shell has its background jobs ignore Ctrl-C, and the programs that tests start would, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    required("redis")  # a wrong name in EVENTMESH_TEST_REQUIRE is an error before any test
    refuse_env_file(Path(__file__).parents[1] / ".env")
    if not hasattr(config, "workerinput"):
        compile_ahead()


def refuse_env_file(path: Path) -> None:
    """Commands that tests run in the repository would take their settings from this file."""
    if found := read_env_file(path):
        raise pytest.UsageError(f"Move {path} away while tests run: it sets {', '.join(found)}.")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Collecting makes a million objects that stay until the end. The garbage collector would look
    through all of them again and again, for a tenth of the tests' processor time. New ones are
    looked at as in a worker."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
    gc.enable()  # disabled in pytest_configure


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling | None:
    """Of pytest-xdist: who decides which process runs what."""
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def compile_ahead() -> None:
    """Compile EventMesh once. Tests start hundreds of processes that write no byte code, and each
    of them would spend a seventh of its start on compiling."""
    compileall.compile_dir(Path(eventmesh.__file__).parent, quiet=2)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist: a worker is about to be started."""
    stash = node.config.stash
    if _HELD not in stash:
        compile_tests(node.config)
        stash[_HELD] = held = ExitStack()
        pool = ServerPool(stash[ORIGINS].append)
        held.callback(pool.close)
        node.config.add_cleanup(held.close)
        stash[_SOCKET_PATH] = held.enter_context(answering(pool))
    node.workerinput[_SOCKET] = str(stash[_SOCKET_PATH])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if lines := config.stash[ORIGINS]:
        terminalreporter.section("servers")
        for line in sorted(lines):
            terminalreporter.line(line)
