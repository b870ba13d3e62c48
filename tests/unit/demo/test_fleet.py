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


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():  # noqa: ASYNC110  # of no event
            await asyncio.sleep(0.02)
    assert condition(), what


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder whose workers are killed at the end of the test."""
    yield tmp_path
    for pid in workers_at(tmp_path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_no_worker_outlives_a_demo_that_is_killed(folder: Path) -> None:
    log = folder / "shipping.log"
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, str(folder)),
        cwd=ROOT,
        env={**os.environ, **environment(folder)},
    )
    try:
        await until(lambda: log.exists() and "worker is ready" in log.read_text(), "a worker")
        assert len(workers_at(folder)) == 1
    finally:
        demo.kill()
        await demo.wait()
    await until(lambda: not workers_at(folder), "no worker")


async def test_a_ready_worker_is_killed_and_replaced_and_a_starting_one_is_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    fleet = Fleet(["shipping"], environment(folder), folder)
    log = fleet.log_of("shipping")
    try:
        await fleet.start()
        (starting,) = workers_at(folder)
        await fleet.kill_one()
        assert (fleet.kills, workers_at(folder)) == (0, [starting])
        await until(lambda: "worker is ready" in log.read_text(), "a worker")
        async with asyncio.timeout(TIMEOUT):
            while not fleet.kills:  # it writes to its pipe a moment after this line
                await fleet.kill_one()
                await asyncio.sleep(0.01)
        assert workers_at(folder) != [starting]
        await until(lambda: log.read_text().count("worker is ready") == 2, "its successor")
        assert await fleet.stop(TIMEOUT) == {}
    finally:
        fleet.abort()
