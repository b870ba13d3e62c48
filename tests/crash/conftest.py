"""Fork servers, deployments, and the table of all kills: build/crash-points.md."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest

from eventmesh.testing.servers import Server, version_of
from eventmesh.testing.servers.postgres_server import execute
from tests.crash import report
from tests.crash.deployment import Deployment, sqlite_deployment
from tests.crash.fork_server_pool import ForkServer, ForkServerPool
from tests.support.own_loop import run_on_own_loop
from tests.support.rows import Rows

ROWS = pytest.StashKey[Rows[report.Row]]()
Record = Callable[[report.Row], None]


@pytest.fixture(scope="session")
def pool() -> Iterator[ForkServerPool]:
    servers = [ForkServer() for _ in range(min(os.cpu_count() or 1, 4))]
    yield ForkServerPool(servers)
    for server in servers:
        server.close()


@pytest.fixture
def sqlite_deployments(pool: ForkServerPool, tmp_path: Path) -> list[Deployment]:
    """A deployment on SQLite files for each fork server."""
    deployments = [
        sqlite_deployment(tmp_path / f"deployment-{number}") for number in range(len(pool))
    ]
    for deployment in deployments:
        assert not pool.call("create", deployment)
    return deployments


@pytest.fixture(scope="session")
def postgres_deployments(
    pool: ForkServerPool, postgres_server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Deployment]]:
    """A deployment on PostgreSQL for each fork server, with the broker in a file. Each schedule
    empties its databases, so that all tests can share them."""
    folder = tmp_path_factory.mktemp("postgres")
    with ExitStack() as stack:
        deployments = []
        for number in range(len(pool)):
            urls = [stack.enter_context(shared_database(postgres_server)) for _ in range(2)]
            deployments.append(Deployment(str(folder / str(number)), *urls, True))
        for deployment in deployments:
            assert not pool.call("create", deployment)
        yield deployments


@contextmanager
def shared_database(server: Server) -> Iterator[str]:
    """The URL of a new database on this server, as `fresh_database` gives it to one test."""
    name = f"crash_{secrets.token_hex(8)}"
    run_on_own_loop(partial(execute, server.url, f"CREATE DATABASE {name} TEMPLATE template0"))
    try:
        yield urlunsplit(urlsplit(server.url)._replace(path=f"/{name}"))
    finally:
        run_on_own_loop(partial(execute, server.url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def postgres_name(postgres_server: Server) -> str:
    return f"postgres {await version_of(postgres_server)}"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Adds a row to the table."""
    return request.config.stash[ROWS].add


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = rows = Rows("crash points", asdict, _row)
    config.pluginmanager.register(rows)


def _row(sent: dict[str, Any]) -> report.Row:
    return report.Row(**sent)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if rows := config.stash[ROWS].all:
        report.write(config.rootpath / "build" / "crash-points.md", rows)
        terminalreporter.section("crash points")
        terminalreporter.write(report.table(rows))
