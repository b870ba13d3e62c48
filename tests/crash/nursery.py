"""A process in which everything is imported, and which forks one for each life:

    python -m tests.crash.nursery

Reads what to do, one a line, and answers each with one line: what came of it.
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

from tests.crash import boundaries, world
from tests.crash.life import Told, live, outlive
from tests.crash.points import KILLED, Kill
from tests.crash.world import World

BROKE = 70
"""The exit code of a life that ended by an error."""


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    boundaries.note_points()
    with boundaries.on_virtual_loops():
        warm_up()
        for line in sys.stdin:
            asked = json.loads(line)
            do = {"make": make, "walk": walk, "recover": recover, "play": play, "outlive": survive}
            answer = do[asked.pop("do")](World(**asked.pop("world")), **asked)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


def warm_up() -> None:
    """Live once, for all that is imported or built when it is first needed."""
    with TemporaryDirectory() as folder:
        place = world.on_files(Path(folder))
        asyncio.run(world.make(place))
        live(place, 1, None)
    asyncio.set_event_loop(None)
    gc.collect()
    gc.freeze()
    gc.disable()


def make(place: World) -> Told:
    """Make the tables."""

    def do() -> Told:
        asyncio.run(world.make(place))
        return {}

    return whole(do)


def walk(place: World, states: str) -> Told:
    """Live undisturbed, and keep what a kill would leave at each point."""
    return whole(lambda: live(place, 1, states=Path(states)))


def recover(place: World) -> Told:
    """Live on what a killed process has left."""
    return whole(lambda: live(place, 2))


def play(place: World, kills: Sequence[Any]) -> Told:
    """Begin, live and be killed as often as there are kills, and live once more to the end. Tells
    of each kill whether it came to it, and of the last life all."""
    reached = []
    for number, asked in enumerate(kills, 1):
        kill = _kill(asked)
        code, _ = in_child(lambda number=number, kill=kill: live(place, number, kill))
        reached.append(code == KILLED)
    return whole(lambda: live(place, len(kills) + 1)) | {"reached": reached}


def survive(place: World, kills: Sequence[Any]) -> Told:
    """Kill one of two workers, if any; tells of the one that goes on."""
    return whole(lambda: outlive(place, *map(_kill, kills)))


def whole(do: Callable[[], Told]) -> Told:
    """What a process tells that comes to its end; otherwise, that is what is wrong."""
    code, told = in_child(do)
    if code:
        error = f"it ended with {code}: {told.get('error', '')}"
        return {"faults": [error], "points": [], "reached": []}
    return told


def in_child(do: Callable[[], Told]) -> tuple[int, Told]:
    """The exit code of a forked process that does this, and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        code = 0
        try:
            said = do()
        except BaseException:  # noqa: BLE001  # told to who asked
            code, said = BROKE, {"error": traceback.format_exc()}
        with os.fdopen(writing, "w") as pipe:
            json.dump(said, pipe)
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(said or "{}")


def _kill(asked: Any) -> Kill:
    return tuple(asked) if isinstance(asked, list) else asked


if __name__ == "__main__":
    main()
