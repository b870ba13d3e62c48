"""Worker processes, started, killed and started again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class Fleet:
    """One `eventmesh worker` process for each service. Their logs go to files in `logs`."""

    def __init__(self, services: Sequence[str], environment: Mapping[str, str], logs: Path) -> None:
        self._services = services
        self._environment = {**os.environ, **environment}
        self._logs = logs
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.kills = 0

    async def start(self) -> None:
        """Start all workers."""
        for service in self._services:
            await self._start(service)

    async def kill_one(self) -> None:
        """End a random worker with SIGKILL and start it again."""
        service = random.choice(list(self._processes))  # noqa: S311  # chance, no secret
        process = self._processes.pop(service)  # so that its end is not taken for a crash
        if process.returncode is None:
            process.kill()
        await process.wait()
        self.kills += 1
        await self._start(service)

    def crashed(self) -> dict[str, int]:
        """The exit codes of workers that ended without having been told to."""
        return {
            service: process.returncode
            for service, process in self._processes.items()
            if process.returncode is not None
        }

    def log_of(self, service: str) -> Path:
        """Where a worker's log lines are."""
        return self._logs / f"{service}.log"

    async def stop(self, patience: float) -> dict[str, int]:
        """Let all workers drain, for `patience` seconds; returns the exit codes of failures."""
        for process in self._processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience):
                for process in self._processes.values():
                    await process.wait()
        except TimeoutError:
            self.abort()
        # One that was still starting has nothing to drain, and ends by the signal itself.
        clean = (0, -signal.SIGTERM)
        return {service: code for service, code in self.crashed().items() if code not in clean}

    def abort(self) -> None:
        """End what still runs, at once."""
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()

    async def _start(self, service: str) -> None:
        with self.log_of(service).open("ab") as log:
            self._processes[service] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "eventmesh",
                "worker",
                service,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the demo's to handle
            )
