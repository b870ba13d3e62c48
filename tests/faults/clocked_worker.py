"""A worker process of feed and till whose wall clock is off by the seconds in a file.

    python clocked_worker.py FILE

Only the time of day and the ids are moved; the monotonic clock of a machine never jumps.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime, timedelta
from pathlib import Path

import uuid_utils

from eventmesh.cli.main import silence_aiormq
from eventmesh.clock import SystemClock
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.discovery import load_services
from eventmesh.runtime.declaring.settings import Settings, load_settings
from eventmesh.transports.factory import open_transport


class OffClock(SystemClock):
    """The machine's clock, moved by the current content of the file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=float(self._file.read_text()))

    def new_id(self) -> str:
        return str(uuid_utils.uuid7(nanoseconds=int(self.now().timestamp() * 1e9)))


async def run(settings: Settings, clock: OffClock) -> None:
    """Run until killed."""
    services = load_services(["feed", "till"], Path.cwd())
    for service in services:
        service.clock = clock
    options = settings.transport_options
    async with open_transport(settings.broker_url, clock, options) as transport:
        await Worker(services, transport, settings, clock).run(asyncio.Event())


if __name__ == "__main__":
    _settings = load_settings()
    configure_logs(_settings)
    silence_aiormq()
    asyncio.run(run(_settings, OffClock(Path(sys.argv[1]))))
