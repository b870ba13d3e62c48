"""The demo's workers, as real processes on SQLite files."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from services.demo.fleet import Fleet

ROOT = Path(__file__).parents[3]
TIMEOUT = 60.0

PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from services.demo.fleet import Fleet

async def main():
    await Fleet(["shipping"], dict(os.environ), Path(sys.argv[1])).start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def environment(folder: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(ROOT),
        "EVENTMESH_BROKER_URL": f"sqlite:///{folder}/broker.db",
        "EVENTMESH_SHIPPING_DATABASE_URL": f"sqlite:///{folder}/shipping.db",
        "EVENTMESH_LOG_FORMAT": "json",
    }


def workers_at(folder: Path) -> list[int]:
    """The process ids of all workers that use this folder, whoever their parent is."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"worker" in words and str(folder).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


async def wait_until(condition: Callable[[], bool], expected: str) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.02)
    assert condition(), expected


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder whose workers are killed at the end of the test."""
    yield tmp_path
    for pid in workers_at(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_workers_end_when_the_demo_is_killed(folder: Path) -> None:
    log = folder / "shipping.log"
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(folder)),
        cwd=ROOT,
        env={**os.environ, **environment(folder)},
    )
    try:
        await wait_until(
            lambda: log.exists() and "worker is ready" in log.read_text(), "a worker is ready"
        )
        assert len(workers_at(folder)) == 1
    finally:
        demo.kill()
        await demo.wait()
    await wait_until(lambda: not workers_at(folder), "no worker is left")


async def test_only_a_ready_worker_is_killed_and_it_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # A module that each Python imports first: the worker waits here until the test writes.
    gate, waiting = folder / "gate", folder / "waiting"
    os.mkfifo(gate)
    waiting.mkdir()
    (waiting / "sitecustomize.py").write_text(f"open({str(gate)!r}).read()\n")
    path = {"PYTHONPATH": f"{waiting}{os.pathsep}{ROOT}"}
    fleet = Fleet(["shipping"], environment(folder) | path, folder)
    log = fleet.log_of("shipping")
    try:
        await fleet.start()
        # A process that has just begun has no command line for a moment.
        await wait_until(lambda: bool(workers_at(folder)), "a worker is starting")
        (starting,) = workers_at(folder)
        await fleet.kill_one()
        assert (fleet.kills, workers_at(folder)) == (0, [starting])
        await asyncio.to_thread(gate.write_text, "")  # once the worker reads
        (waiting / "sitecustomize.py").write_text("")
        await wait_until(lambda: "worker is ready" in log.read_text(), "a worker is ready")
        async with asyncio.timeout(TIMEOUT):
            while (
                not fleet.kills
            ):  # the worker reports that it is ready a moment after this log line
                await fleet.kill_one()
                await asyncio.sleep(0.01)
        assert workers_at(folder) != [starting]
        await wait_until(
            lambda: log.read_text().count("worker is ready") == 2, "the replacement is ready"
        )
        assert await fleet.stop(TIMEOUT) == {}
    finally:
        fleet.abort()
