"""Nurseries, worlds, and the table of what was stopped where: build/crash-points.md."""

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
from tests.crash.lanes import Lanes, Nursery
from tests.crash.world import World, on_files
from tests.support.rows import Rows

ROWS = pytest.StashKey[Rows[report.Row]]()
Record = Callable[[report.Row], None]


@pytest.fixture(scope="session")
def lanes() -> Iterator[Lanes]:
    nurseries = [Nursery() for _ in range(min(os.cpu_count() or 1, 4))]
    yield Lanes(nurseries)
    for nursery in nurseries:
        nursery.close()


@pytest.fixture
def file_worlds(lanes: Lanes, tmp_path: Path) -> list[World]:
    """A world on SQLite files for each lane."""
    worlds = [on_files(tmp_path / f"lane-{number}") for number in range(len(lanes))]
    for world in worlds:
        assert not lanes.ask("make", world)
    return worlds


@pytest.fixture
async def postgres_worlds(
    lanes: Lanes, postgres_server: Server, tmp_path: Path
) -> AsyncIterator[list[World]]:
    """A world on PostgreSQL for each lane, with the broker in a file."""
    async with AsyncExitStack() as stack:
        worlds = []
        for number in range(len(lanes)):
            urls = [
                await stack.enter_async_context(fresh_database(postgres_server)) for _ in range(2)
            ]
            worlds.append(World(str(tmp_path / f"lane-{number}"), *urls, True))
        for world in worlds:
            assert not lanes.ask("make", world)
        yield worlds


@pytest.fixture
async def postgres_name(postgres_server: Server) -> str:
    return f"postgres {await version_of(postgres_server)}"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Puts a row into the table."""
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
