"""What a worker takes while nothing happens, beside FastStream with as many subscribers."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Program, running
from benchmarks.programs import SERVICE_MODULE, SUBSCRIPTIONS
from benchmarks.report import Row, level_row

SETTLE_SECONDS = 8.0
"""Until what follows a start is over."""

LOOK_SECONDS = 20.0

PROJECT = '[tool.eventmesh.services]\nbench = "resting:service"\n'
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Rest:
    """Percent of a core, and memory in MB."""

    cpu: float
    memory: float


def at_rest(broker: str, url: str) -> list[Row]:
    """Rows for one broker: Redis or RabbitMQ, which FastStream knows too."""
    with worker(url) as ours:
        mine = look(ours)
    with faststream(url) as peer:
        theirs = look(peer)
    return [
        level_row(f"{broker} at rest, CPU", "FastStream", mine.cpu, theirs.cpu, "% core"),
        level_row(f"{broker} at rest, memory", "FastStream", mine.memory, theirs.memory, "MB"),
    ]


def look(program: Program) -> Rest:
    """What the program takes now."""
    time.sleep(SETTLE_SECONDS)
    began, cpu = time.perf_counter(), program.cpu_seconds()
    time.sleep(LOOK_SECONDS)
    share = (program.cpu_seconds() - cpu) / (time.perf_counter() - began)
    return Rest(share * 100, program.resident_bytes() / 2**20)


@contextmanager
def worker(url: str, subscriptions: int = SUBSCRIPTIONS, **settings: str) -> Iterator[Program]:
    """`eventmesh worker` with the service of this benchmark, when it is ready. Its database is a
    SQLite file."""
    with tempfile.TemporaryDirectory(prefix="eventmesh-bench-") as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "resting.py").write_text(SERVICE_MODULE.format(subscriptions))
        environment = {"EVENTMESH_BROKER_URL": url, "EVENTMESH_LOG_FORMAT": "json"} | settings
        command = [sys.executable, "-m", "eventmesh", "worker", "--no-supervise", "bench"]
        with _started(command, folder, environment, "worker is ready") as program:
            yield program


@contextmanager
def faststream(url: str) -> Iterator[Program]:
    """FastStream, when it consumes."""
    with tempfile.TemporaryDirectory(prefix="eventmesh-bench-") as name:
        command = [sys.executable, "-m", "benchmarks.programs", "faststream", url]
        with _started(command, Path(name), {}, "ready") as program:
            yield program


@contextmanager
def _started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], ready: str
) -> Iterator[Program]:
    with running(command, folder, {"PYTHONPATH": str(ROOT), **environment}) as program:
        program.until_it_says(ready)
        yield program
