"""A process that imports everything once and forks a child for each run of a worker:

    python -m tests.crash.fork_server

A fork starts in a few milliseconds where a new interpreter needs a second, and thousands of crash
points need thousands of processes. The fork server reads one command a line on standard input, as
JSON, and answers each with one line: the result of the run.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import structlog

from tests.crash import instrumentation
from tests.crash.crash_points import KILLED, Kill
from tests.crash.deployment import Deployment, create_tables, sqlite_deployment
from tests.crash.worker_run import Result, run_two_workers, run_worker

FAILED = 70
"""The exit code of a run that ended with an exception."""


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    instrumentation.instrument()
    warm_up()
    for line in sys.stdin:
        call = json.loads(line)
        commands = {
            "create": create,
            "take_snapshots": take_snapshots,
            "recover": recover,
            "kill_and_recover": kill_and_recover,
            "kill_one_of_two": kill_one_of_two,
        }
        command = commands[call.pop("command")]
        answer = command(Deployment(**call.pop("deployment")), **call)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def warm_up() -> None:
    """Run once, so that everything imported or built on first use exists before the forks."""
    with TemporaryDirectory() as folder:
        deployment = sqlite_deployment(Path(folder))
        asyncio.run(create_tables(deployment))
        run_worker(deployment, 1, None)
    asyncio.set_event_loop(None)
    gc.collect()
    gc.freeze()
    gc.disable()


def create(deployment: Deployment) -> Result:
    """Create the tables."""

    def do() -> Result:
        asyncio.run(create_tables(deployment))
        return {}

    return result_of(do)


def take_snapshots(deployment: Deployment, snapshot_folder: str) -> Result:
    """Run without a kill, and keep what a kill at each point would leave in the files."""
    return result_of(lambda: run_worker(deployment, 1, snapshot_folder=Path(snapshot_folder)))


def recover(deployment: Deployment) -> Result:
    """Run on what a killed process has left."""
    return result_of(lambda: run_worker(deployment, 2))


def kill_and_recover(deployment: Deployment, kills: Sequence[Any]) -> Result:
    """Run and be killed once for each of `kills`, then run to the end.

    Returns the result of the last run, and in `reached` whether each kill happened.
    """
    reached = []
    for number, each in enumerate(kills, 1):
        kill = _kill(each)
        code, _ = in_child(lambda number=number, kill=kill: run_worker(deployment, number, kill))
        reached.append(code == KILLED)
    return result_of(lambda: run_worker(deployment, len(kills) + 1)) | {"reached": reached}


def kill_one_of_two(deployment: Deployment, kills: Sequence[Any]) -> Result:
    """Run two workers and kill the first of them, if `kills` holds a point; see
    `run_two_workers`."""
    return result_of(lambda: run_two_workers(deployment, *map(_kill, kills)))


def result_of(do: Callable[[], Result]) -> Result:
    """The result of a forked process; a process that does not exit normally is a violation."""
    code, result = in_child(do)
    if code:
        error = f"the process exited with {code}: {result.get('error', '')}"
        return {"violations": [error], "points": [], "reached": []}
    return result


def in_child(do: Callable[[], Result]) -> tuple[int, Result]:
    """Call a function in a forked process; returns the exit code and the function's result."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        code = 0
        try:
            result = do()
        except BaseException:  # noqa: BLE001  # reported to the parent
            code, result = FAILED, {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(result, pipe)
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(answer or "{}")


def _kill(decoded: Any) -> Kill:
    return tuple(decoded) if isinstance(decoded, list) else decoded


if __name__ == "__main__":
    main()
