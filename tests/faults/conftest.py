"""Systems for fault tests: servers that the tests may stop and kill, with proxies in front.

With EVENTMESH_SOAK_MINUTES, they run with more messages, all in each round and in any order, until
that time is over. A round takes about a quarter of an hour. The table of what was done is
build/faults.md.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from eventmesh.testing.servers import (
    ControlledServer,
    ServerMissing,
    Way,
    fresh_database,
    required,
    serve_controlled,
)
from eventmesh.testing.servers.postgres_server import execute
from tests.faults import report
from tests.faults.effects import Account
from tests.faults.system_under_test import Endpoints, Servers, SystemUnderTest, linked, system_at
from tests.integration.conftest import Project
from tests.integration.forks import Forks
from tests.support.promised_times import MINUTES_VARIABLE, is_soak
from tests.support.rows import Rows

ROWS = pytest.StashKey[Rows[report.Row]]()
ORIGINS = pytest.StashKey[Rows[str]]()
SOAK_UNTIL = pytest.StashKey[float]()
"""The time.monotonic() at which no further test is begun."""

MOST_ROUNDS = 100

At = Callable[..., AbstractAsyncContextManager[SystemUnderTest]]
Record = Callable[[report.Row], None]


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    """Returns a server of a kind, started when it is first requested and shared by all fault
    tests."""
    with ExitStack() as stack:
        started: dict[tuple[str, Way | None], ControlledServer] = {}

        def ask(kind: str, way: Way | None = None) -> ControlledServer:
            if (kind, way) not in started:
                try:
                    server = stack.enter_context(serve_controlled(kind, way=way))
                except ServerMissing as missing:
                    if required(kind):
                        pytest.fail(str(missing), pytrace=False)
                    pytest.skip(str(missing))
                started[kind, way] = server
                request.config.stash[ORIGINS].add(f"{kind} {server.version}: {server.origin}")
            return started[kind, way]

        yield ask


@pytest.fixture
def at(tmp_path: Path, servers: Servers, forks: Forks) -> At:
    """Makes a system with this broker and this database, one of them reached `through` a proxy
    ("broker" or "database"). All its processes are killed on leaving."""

    @asynccontextmanager
    async def make(
        broker: str,
        database: str,
        through: str = "",
        database_folder: Path = tmp_path,
        broker_folder: Path = tmp_path,
        tablespace: Path | None = None,
    ) -> AsyncIterator[SystemUnderTest]:
        async with AsyncExitStack() as stack:
            broker_url = f"sqlite:///{broker_folder}/broker.db"
            if broker != "sqlite":
                server = servers({"redis": "redis", "amqp": "rabbitmq"}[broker])
                await server.start()  # should a test before have left it stopped
                broker_url = server.url
            database_url = f"sqlite+aiosqlite:///{database_folder}/till.db"
            if database != "sqlite":
                # A table space lies on this machine, so its server must not be in a container.
                database_server = servers("postgres", "private" if tablespace else None)
                await database_server.start()
                database_url = await stack.enter_async_context(
                    database_on(database_server, tablespace)
                )
            endpoints = Endpoints(
                broker=broker,
                database=database,
                broker_url=broker_url,
                database_url=database_url,
                broker_link=await stack.enter_async_context(
                    linked(broker_url, through == "broker")
                ),
                database_link=await stack.enter_async_context(
                    linked(database_url, through == "database")
                ),
                servers=servers,
                feed_database_url=f"sqlite+aiosqlite:///{tmp_path}/feed.db",
            )
            root = tmp_path / "project"
            root.mkdir()
            project = Project(root, forks)
            stack.callback(project.kill)
            yield await stack.enter_async_context(system_at(project, endpoints))

    return make


@asynccontextmanager
async def database_on(server: ControlledServer, tablespace: Path | None) -> AsyncIterator[str]:
    """The URL of a new database, in a table space in this folder if one is named."""
    async with AsyncExitStack() as stack:
        if tablespace is not None:
            name = f"space_{secrets.token_hex(8)}"
            await execute(server.url, f"CREATE TABLESPACE {name} LOCATION '{tablespace}'")
            stack.push_async_callback(execute, server.url, f"DROP TABLESPACE {name}")
        url = await stack.enter_async_context(fresh_database(server))
        if tablespace is not None:
            database = make_url(url).database
            await execute(server.url, f'ALTER DATABASE "{database}" SET TABLESPACE {name}')
        yield url


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Adds a row to the table and prints it."""

    def put(row: report.Row) -> None:
        request.config.stash[ROWS].add(row)
        print(" | ".join(row.cells()))  # noqa: T201

    return put


@pytest.fixture
def amount() -> int:
    """The number of messages."""
    return 600 if is_soak() else 200


@pytest.fixture
def hold() -> float:
    """Seconds for which a fault lasts."""
    return random.uniform(0.5, 6.0) if is_soak() else 1.0  # noqa: S311


# Rounds


@pytest.fixture(scope="session", autouse=True)
def soak_round(request: pytest.FixtureRequest) -> int:
    """The round of the soak. Session-scoped, so that each round runs all tests."""
    number: int = getattr(request, "param", 0)
    return number


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if is_soak():
        metafunc.parametrize("soak_round", range(MOST_ROUNDS), indirect=True, scope="session")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = rows = Rows("faults", asdict, _row)
    config.stash[ORIGINS] = origins = Rows("servers of faults", str, str)
    for collected in (rows, origins):
        config.pluginmanager.register(collected)
    if minutes := os.environ.get(MINUTES_VARIABLE):
        config.stash[SOAK_UNTIL] = time.monotonic() + 60 * float(minutes)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle each round, so that a soak too short for all tests runs different ones."""
    if is_soak():
        items.sort(key=lambda item: (round_of(item), random.random()))  # noqa: S311


def round_of(item: pytest.Item) -> int:
    callspec = getattr(item, "callspec", None)
    return int(callspec.params["soak_round"]) if callspec else 0


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Skip the remaining tests once the time is over."""
    if is_soak() and time.monotonic() > item.config.stash[SOAK_UNTIL]:
        return True
    return None


# The table


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows, origins = config.stash[ROWS].all, sorted({*config.stash[ORIGINS].all})
    if rows:
        path = config.rootpath / "build" / "faults.md"
        report.write(path, rows, origins)
        terminalreporter.section("faults")
        terminalreporter.write(report.table(rows, origins))


def _row(sent: dict[str, Any]) -> report.Row:
    return report.Row(**sent | {"account": Account(**sent["account"])})
