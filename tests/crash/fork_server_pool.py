"""A pool of fork servers, so that several schedules run at the same time.

Each schedule needs a deployment of its own while it runs; the pool hands out whichever is free.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.crash.deployment import Deployment

_ROOT = Path(__file__).parents[2]


class ForkServer:
    """The parent's end of a fork server: one line of JSON out, one line back."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.fork_server"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, command: str, deployment: Deployment, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(
            json.dumps({"command": command, "deployment": deployment.json(), **more}) + "\n"
        )
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


class ForkServerPool:
    """Runs as many commands at a time as there are fork servers."""

    def __init__(self, servers: Sequence[ForkServer]) -> None:
        self._servers = servers

    def __len__(self) -> int:
        return len(self._servers)

    def call(self, command: str, deployment: Deployment, **more: Any) -> dict[str, Any]:
        return self._servers[0].call(command, deployment, **more)

    def recover(self, deployments: Sequence[Deployment]) -> list[dict[str, Any]]:
        """Restart a worker on each of these; returns the result of each."""
        return self._map([("recover", deployment, {}) for deployment in deployments])

    def kill_each(
        self,
        deployments: Sequence[Deployment],
        schedules: Iterable[Sequence[Any]],
        command: str = "kill_and_recover",
    ) -> list[dict[str, Any]]:
        """Run each schedule on whichever deployment is free; returns the result of each."""
        free: SimpleQueue[Deployment] = SimpleQueue()
        for deployment in deployments:
            free.put(deployment)
        return self._map([(command, free, {"kills": kills}) for kills in schedules])

    def _map(self, calls: Sequence[tuple[str, Any, dict[str, Any]]]) -> list[dict[str, Any]]:
        idle: SimpleQueue[ForkServer] = SimpleQueue()
        for server in self._servers:
            idle.put(server)

        def call_one(call: tuple[str, Any, dict[str, Any]]) -> dict[str, Any]:
            command, place, more = call
            server = idle.get()
            deployment = place if isinstance(place, Deployment) else place.get()
            try:
                return server.call(command, deployment, **more)
            finally:
                idle.put(server)
                if deployment is not place:
                    place.put(deployment)

        pool = ThreadPoolExecutor(len(self._servers))
        try:
            return list(pool.map(call_one, calls))
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the queue
