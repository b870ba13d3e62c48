"""The worker processes of the demo: started, killed at random, and restarted."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from eventmesh.private_files import make_private_file


@dataclass(eq=False)
class _Worker:
    """One process, and the reading end of the pipe to which it writes once it is ready."""

    process: asyncio.subprocess.Process
    ready_pipe: BinaryIO

    @property
    def is_ready(self) -> bool:
        """Whether it is ready, or has exited."""
        readable, _, _ = select.select([self.ready_pipe], [], [], 0)
        return bool(readable)

    @property
    def code(self) -> int | None:
        return self.process.returncode


class Fleet:
    """One `eventmesh worker` process for each service. They log to files in `logs` and do not
    outlive this process."""

    def __init__(self, services: Sequence[str], environment: Mapping[str, str], logs: Path) -> None:
        self._services = services
        self._environment = {**os.environ, **environment}
        self._logs = logs
        self._workers: dict[str, _Worker] = {}
        self.kills = 0

    async def start(self) -> None:
        """Start all workers."""
        for service in self._services:
            await self._start(service)

    async def kill_one(self) -> None:
        """Kill a random worker with SIGKILL and restart it. A worker that is still starting is left
        alone: on a slow machine, none would ever become ready."""
        service, worker = random.choice(list(self._workers.items()))  # noqa: S311  # no secret
        if worker.code is not None or not worker.is_ready:
            return
        del self._workers[service]  # so that its exit does not count as a crash
        worker.process.kill()
        await worker.process.wait()
        worker.ready_pipe.close()
        self.kills += 1
        await self._start(service)

    def crashed(self) -> dict[str, int]:
        """The exit codes of workers that exited without being stopped."""
        codes = {service: worker.code for service, worker in self._workers.items()}
        return {service: code for service, code in codes.items() if code is not None}

    def log_of(self, service: str) -> Path:
        """The log file of a worker."""
        return self._logs / f"{service}.log"

    async def stop(self, limit: float) -> dict[str, int]:
        """Drain all workers for at most `limit` seconds; returns the exit codes of failures."""
        for worker in self._workers.values():
            if worker.code is None:
                worker.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(limit):
                for worker in self._workers.values():
                    await worker.process.wait()
        except TimeoutError:
            self.abort()
        # A worker that was still starting has nothing to drain and dies from the signal.
        clean = (0, -signal.SIGTERM)
        return {service: code for service, code in self.crashed().items() if code not in clean}

    def abort(self) -> None:
        """Kill the workers that still run."""
        for worker in self._workers.values():
            if worker.code is None:
                worker.process.kill()
            worker.ready_pipe.close()

    async def _start(self, service: str) -> None:
        reading, writing = os.pipe()
        ready_pipe = os.fdopen(reading, "rb")
        try:
            make_private_file(self.log_of(service))
            with self.log_of(service).open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "eventmesh", "worker", service),
                    "--end-with=0",  # this pipe closes with this process, however it exits
                    f"--tell-ready={writing}",
                    env=self._environment,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writing,),
                    start_new_session=True,  # Ctrl-C is the demo's to handle
                )
        finally:
            os.close(writing)
        self._workers[service] = _Worker(process, ready_pipe)
