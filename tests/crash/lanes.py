"""Several nurseries side by side, each with a world of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.crash.world import World

_ROOT = Path(__file__).parents[2]


class Nursery:
    """A process that forks the lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, world: World, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "world": world.json(), **more}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


class Lanes:
    """Asks as many at a time as there are nurseries."""

    def __init__(self, nurseries: Sequence[Nursery]) -> None:
        self._nurseries = nurseries

    def __len__(self) -> int:
        return len(self._nurseries)

    def ask(self, do: str, world: World, **more: Any) -> dict[str, Any]:
        return self._nurseries[0].ask(do, world, **more)

    def recover(self, worlds: Sequence[World]) -> list[dict[str, Any]]:
        """What became of each of these."""
        return self._map([("recover", world, {}) for world in worlds])

    def play(
        self, worlds: Sequence[World], schedules: Iterable[Sequence[Any]], do: str = "play"
    ) -> list[dict[str, Any]]:
        """What became of each schedule, in whichever of the worlds it was played."""
        free: SimpleQueue[World] = SimpleQueue()
        for world in worlds:
            free.put(world)
        return self._map([(do, free, {"kills": kills}) for kills in schedules])

    def _map(self, asks: Sequence[tuple[str, Any, dict[str, Any]]]) -> list[dict[str, Any]]:
        idle: SimpleQueue[Nursery] = SimpleQueue()
        for nursery in self._nurseries:
            idle.put(nursery)

        def one(asked: tuple[str, Any, dict[str, Any]]) -> dict[str, Any]:
            do, place, more = asked
            nursery = idle.get()
            world = place if isinstance(place, World) else place.get()
            try:
                return nursery.ask(do, world, **more)
            finally:
                idle.put(nursery)
                if world is not place:
                    place.put(world)

        pool = ThreadPoolExecutor(len(self._nurseries))
        try:
            return list(pool.map(one, asks))
        finally:
            pool.shutdown(cancel_futures=True)  # what is interrupted does not go on to the end
