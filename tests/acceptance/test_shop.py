"""The shop as four worker processes: every purchase comes to exactly one end.

They are not a mesh of the testing kit, which starts no processes of the operating system.
`eventmesh demo` checks the four databases itself, by `services/demo/verdict.py`, which
has tests of its own that show it failing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from eventmesh.testing.servers import Server, fresh_database
from tests.integration.forks import ForkedProcess, Forks

ROOT = Path(__file__).parents[2]
SERVICES = ("orders", "payments", "inventory", "shipping")
TIMEOUT = 240  # seconds


def combinations(*daily: tuple[str, str]) -> pytest.MarkDecorator:
    """Each broker with each database; those that are not named run only in the soak."""
    return pytest.mark.parametrize(
        ("broker", "database"),
        [
            pytest.param(*each, marks=[] if each in daily else [pytest.mark.soak])
            for each in itertools.product(("sqlite", "redis", "amqp"), ("sqlite", "postgres"))
        ],
    )


@asynccontextmanager
async def four_databases(server: Server | None) -> AsyncIterator[dict[str, str]]:
    """The variables that give each service an empty database of its own: on this server, or in
    SQLite files, which are the default."""
    async with AsyncExitStack() as stack:
        yield {
            f"EVENTMESH_{service.upper()}_DATABASE_URL": await stack.enter_async_context(
                fresh_database(server)
            )
            for service in SERVICES
            if server is not None
        }


Demo = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def demo(forks: Forks, tmp_path: Path) -> Demo:
    """Runs `eventmesh demo` in the project's folder: exit code and output. It and its workers are
    forked."""

    async def run(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
        printed = tmp_path / "printed"
        with printed.open("wb") as out:
            command = ["eventmesh", "demo", *arguments]
            process = forks.begin(command, ROOT, {**os.environ, **environment}, out, out)
        try:
            code = await asyncio.to_thread(process.wait, TIMEOUT)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
        return code, printed.read_text()

    return run


async def demo_as_program(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `eventmesh demo` in the project's folder."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "eventmesh", "demo", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return process.returncode or 0, output.decode()


@combinations()  # in every run: `test_the_demo_needs_no_server`, and while workers are killed
async def test_every_purchase_comes_to_one_end(
    broker: str,
    database: str,
    durable_url: Callable[[str], str],
    request: pytest.FixtureRequest,
    demo: Demo,
) -> None:
    url = durable_url(broker)
    server = request.getfixturevalue("postgres_server") if database == "postgres" else None
    async with four_databases(server) as environment:
        code, output = await demo(environment, "--purchases", "60", "--broker", url)
    assert output.splitlines()[-1] == "ok: 60 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert code == 0


@combinations(("sqlite", "sqlite"), ("redis", "postgres"), ("amqp", "postgres"))
async def test_every_purchase_comes_to_one_end_while_workers_are_killed(
    broker: str,
    database: str,
    durable_url: Callable[[str], str],
    request: pytest.FixtureRequest,
    demo: Demo,
) -> None:
    url = durable_url(broker)
    server = request.getfixturevalue("postgres_server") if database == "postgres" else None
    async with four_databases(server) as environment:
        code, output = await demo(environment, "--purchases", "30", "--kill", "--broker", url)
    assert output.splitlines()[-1] == "ok: 30 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert "workers killed" in output
    assert code == 0


async def test_every_purchase_comes_to_one_end_while_services_answer_too_late(demo: Demo) -> None:
    code, output = await demo({}, "--purchases", "20", "--slow")
    assert output.splitlines()[-1] == "ok: 20 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert "saga undone: TimedOut" in output
    assert "late answers undone" in output
    assert code == 0


async def test_the_demo_needs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("EVENTMESH_"):
            monkeypatch.delenv(name)
    code, output = await demo_as_program("--purchases", "30")
    assert "sqlite:///" in output
    assert "orders ended: 30 of 30" in output.splitlines()  # there is no terminal for a bar
    assert output.splitlines()[-1] == "ok: 30 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert code == 0


async def test_purchases_go_through_workers_that_run_already_without_any_settings(
    forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("EVENTMESH_"):
            monkeypatch.delenv(name)
    for needed in ("services", "schemas", "pyproject.toml"):
        (tmp_path / needed).symlink_to(ROOT / needed)
    printed, log = tmp_path / "printed", tmp_path / "log"
    environment = dict(os.environ)
    with ExitStack() as stack:

        def begin(*command: str, out: Path) -> ForkedProcess:
            file = stack.enter_context(out.open("wb"))
            process = forks.begin(["eventmesh", *command], tmp_path, environment, file, file)
            stack.callback(process.wait)
            stack.callback(process.send_signal, signal.SIGTERM)
            return process

        begin("worker", *SERVICES, out=log)
        demo = begin("demo", "--attach", "--purchases", "10", out=printed)
        code = await asyncio.to_thread(demo.wait, TIMEOUT)
    output = printed.read_text()
    assert output.splitlines()[-1] == "ok: 10 purchases, 0 lost, 0 doubled, 0 stuck", output
    assert code == 0


@pytest.mark.parametrize("option", ["--kill", "--slow"])
async def test_workers_that_were_not_started_here_are_neither_killed_nor_slowed(
    option: str, demo: Demo
) -> None:
    code, output = await demo({}, "--attach", option)
    assert (code, output.startswith("Error: ")) == (2, True)
