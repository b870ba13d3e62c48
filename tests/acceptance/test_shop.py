"""The shop as four real worker processes: every purchase comes to exactly one end.

`eventmesh demo` checks the four databases itself, by `services/demo/verdict.py`, which has tests of
its own that show it failing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from eventmesh.testing.servers import Server, fresh_database

ROOT = Path(__file__).parents[2]
SERVICES = ("orders", "payments", "inventory", "shipping")
PATIENCE = 240  # seconds


@pytest.fixture(params=["sqlite", "postgres"])
def kind_of_database(request: pytest.FixtureRequest) -> Server | None:
    """The PostgreSQL server, or None for SQLite files, which are the default."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres_server")


@pytest.fixture
async def four_databases(kind_of_database: Server | None) -> AsyncIterator[dict[str, str]]:
    """The variables that give each service an empty database of its own."""
    async with AsyncExitStack() as stack:
        yield {
            f"EVENTMESH_{service.upper()}_DATABASE_URL": await stack.enter_async_context(
                fresh_database(kind_of_database)
            )
            for service in SERVICES
            if kind_of_database is not None
        }


async def demo(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and output of `eventmesh demo` in the project's folder."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "eventmesh",
        "demo",
        *arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return process.returncode or 0, output.decode()


async def test_every_purchase_comes_to_one_end(
    durable_broker_url: str, four_databases: dict[str, str]
) -> None:
    code, output = await demo(four_databases, "--purchases", "60", "--broker", durable_broker_url)
    assert output.splitlines()[-1] == "ok: 60 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert code == 0


async def test_every_purchase_comes_to_one_end_while_workers_are_killed(
    durable_broker_url: str,
) -> None:
    code, output = await demo({}, "--purchases", "200", "--kill", "--broker", durable_broker_url)
    assert output.splitlines()[-1] == "ok: 200 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert "workers killed" in output
    assert code == 0


async def test_the_demo_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EVENTMESH_"):
            monkeypatch.delenv(name)
    code, output = await demo({}, "--purchases", "30")
    assert "sqlite:///" in output
    assert "orders ended: 30 of 30" in output.splitlines()  # there is no terminal for a bar
    assert output.splitlines()[-1] == "ok: 30 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert code == 0


async def test_killing_workers_that_were_not_started_here_is_refused() -> None:
    code, output = await demo({}, "--attach", "--kill")
    assert (code, output.startswith("Error: ")) == (2, True)
