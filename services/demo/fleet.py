"""Worker processes, started, killed and started again."""

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
    """One process, and the end of a pipe into which it writes when it works."""

    process: asyncio.subprocess.Process
    hears: BinaryIO

    @property
    def works(self) -> bool:
        """Whether it has come to work; true, too, of one that has ended."""
        readable, _, _ = select.select([self.hears], [], [], 0)
        return bool(readable)

    @property
    def code(self) -> int | None:
        return self.process.returncode


class Fleet:
    """One `eventmesh worker` process for each service. Their logs go to files in `logs`, and none
    outlives this process."""

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
        """End a random worker with SIGKILL and start it again. One that is still starting is
        spared: where that takes seconds, none would ever come to work."""
        service, worker = random.choice(list(self._workers.items()))  # noqa: S311  # no secret
        if worker.code is not None or not worker.works:
            return
        del self._workers[service]  # so that its end is not taken for a crash
        worker.process.kill()
        await worker.process.wait()
        worker.hears.close()
        self.kills += 1
        await self._start(service)

    def crashed(self) -> dict[str, int]:
        """The exit codes of workers that ended without having been told to."""
        codes = {service: worker.code for service, worker in self._workers.items()}
        return {service: code for service, code in codes.items() if code is not None}

    def log_of(self, service: str) -> Path:
        """Where a worker's log lines are."""
        return self._logs / f"{service}.log"

    async def stop(self, patience: float) -> dict[str, int]:
        """Let all workers drain, for `patience` seconds; returns the exit codes of failures."""
        for worker in self._workers.values():
            if worker.code is None:
                worker.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                for worker in self._workers.values():
                    await worker.process.wait()
        except TimeoutError:
            self.abort()
        # One that was still starting has nothing to drain, and ends by the signal itself.
        clean = (0, -signal.SIGTERM)
        return {service: code for service, code in self.crashed().items() if code not in clean}

    def abort(self) -> None:
        """End what still runs, at once."""
        for worker in self._workers.values():
            if worker.code is None:
                worker.process.kill()
            worker.hears.close()

    async def _start(self, service: str) -> None:
        receiving, telling = os.pipe()
        hears = os.fdopen(receiving, "rb")
        try:
            make_private_file(self.log_of(service))
            with self.log_of(service).open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "eventmesh", "worker", service),
                    "--end-with-stdin",  # a pipe that ends with this process, however that ends
                    f"--tell-ready={telling}",
                    env=self._environment,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(telling,),
                    start_new_session=True,  # Ctrl-C is the demo's to handle
                )
        finally:
            os.close(telling)
        self._workers[service] = _Worker(process, hears)
