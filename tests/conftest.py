"""Servers and URLs for tests. A server is started when the first test asks for it, kept for the
session, and named at the end of the session with where it came from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from eventmesh.testing.servers import Server, ServerMissing, fresh_database, required, serve

ORIGINS = pytest.StashKey[list[str]]()
"""One line for each server that a test asked for."""


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from provide("redis", request.config)


@pytest.fixture(scope="session")
def rabbitmq_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from provide("rabbitmq", request.config)


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from provide("postgres", request.config)


@pytest.fixture
async def postgres_url(postgres_server: Server) -> AsyncIterator[str]:
    """A new, empty Postgres database for this test."""
    async with fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A new, empty SQLite database for this test."""
    return f"sqlite+aiosqlite:///{tmp_path}/service.db"


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
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


def provide(kind: str, config: pytest.Config) -> Iterator[Server]:
    """This server for as long as the generator lives; without one, the test is skipped with the
    reasons, or fails where EVENTMESH_TEST_REQUIRE names it."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(serve(kind))
        except ServerMissing as missing:
            note(config, f"{kind}: MISSING. {'; '.join(missing.reasons)}")
            if required(kind):
                pytest.fail(str(missing), pytrace=False)
            pytest.skip(str(missing))
        note(config, f"{kind}: {server.origin}")
        yield server


def note(config: pytest.Config, line: str) -> None:
    """Keep this line for the end of the session; a worker of pytest-xdist sends it along."""
    config.stash[ORIGINS].append(line)
    if hasattr(config, "workeroutput"):
        config.workeroutput["servers"] = list(config.stash[ORIGINS])


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ORIGINS] = []
    required("redis")  # a wrong name in EVENTMESH_TEST_REQUIRE is an error before any test


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[ORIGINS].extend(getattr(node, "workeroutput", {}).get("servers", []))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if lines := config.stash[ORIGINS]:
        terminalreporter.section("servers")
        for line in sorted(lines):
            terminalreporter.line(line)
