"""Fork servers, deployments, and the table of all kills: build/crash-points.md."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from eventmesh.testing.servers import Server, fresh_database, version_of
from tests.crash import report
from tests.crash.deployment import Deployment, sqlite_deployment
from tests.crash.fork_server_pool import ForkServer, ForkServerPool
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


@pytest.fixture
async def postgres_deployments(
    pool: ForkServerPool, postgres_server: Server, tmp_path: Path
) -> AsyncIterator[list[Deployment]]:
    """A deployment on PostgreSQL for each fork server, with the broker in a file."""
    async with AsyncExitStack() as stack:
        deployments = []
        for number in range(len(pool)):
            urls = [
                await stack.enter_async_context(fresh_database(postgres_server)) for _ in range(2)
            ]
            deployments.append(Deployment(str(tmp_path / f"deployment-{number}"), *urls, True))
        for deployment in deployments:
            assert not pool.call("create", deployment)
        yield deployments


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
