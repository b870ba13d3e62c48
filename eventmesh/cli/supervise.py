"""Starts the supervisor of worker processes.

The parent process imports neither the services nor what they need, so it starts at once and takes
little memory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from eventmesh.clock import SystemClock
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.supervisor import Supervisor


def worker_command(names: Sequence[str], *options: str) -> list[str]:
    """The command line that runs a worker of these services."""
    return [sys.executable, "-m", "eventmesh", "worker", *options, *names]


def supervise(names: Sequence[str], workers: int, settings: Settings) -> int:
    """Run this many worker processes until a signal stops them; returns the exit code."""

    def command(number: int, ready_descriptor: int) -> list[str]:
        options = ["--end-with=0", f"--tell-ready={ready_descriptor}"]
        if settings.health_port is not None:
            port = settings.health_port + number if settings.health_port else 0
            options.append(f"--health-port={port}")
        return worker_command(names, *options)

    supervisor = Supervisor(
        command,
        worker_command(names, "--try-out"),
        workers=workers,
        drain_timeout=settings.drain_timeout,
        clock=SystemClock(),
    )
    return asyncio.run(supervisor.run())
