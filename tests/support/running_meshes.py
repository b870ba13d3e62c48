"""Services on a broker and databases of their own, and a worker of them in the test's process.

The testing kit's mesh has a worker for each service, and goes on when nothing more happens; these
tests look at one worker of all services while it works, pauses or has lost a server.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eventmesh import Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.operations.reach import Reach
from eventmesh.operations.status import MeshStatus, mesh_status
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.transports.base import Subscription, Transport
from eventmesh.transports.factory import open_transport

CLOCK = SystemClock()


@dataclass
class RunningMesh:
    services: Sequence[Service]
    settings: Settings

    @property
    def service(self) -> Service:
        """The only one."""
        [service] = self.services
        return service

    @property
    def subscriptions(self) -> dict[str, Subscription]:
        return {
            name: handler.subscription
            for service in self.services
            for name, handler in service.handlers.items()
        }

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Transport]:
        """The connected broker, without anything that it has not had before."""
        url, options = self.settings.broker_url, self.settings.transport_options
        async with open_transport(url, CLOCK, options) as transport:
            yield transport

    @asynccontextmanager
    async def worker(self, transport: Transport) -> AsyncIterator[Worker]:
        """A worker that is ready."""
        stop = asyncio.Event()
        worker = Worker(self.services, transport, self.settings, CLOCK)
        running = asyncio.ensure_future(worker.run(stop))
        ready = asyncio.ensure_future(worker.ready.wait())
        try:
            await asyncio.wait([running, ready], timeout=60, return_when=asyncio.FIRST_COMPLETED)
            assert ready.done(), running
            yield worker
        finally:
            stop.set()
            ready.cancel()
            await asyncio.wait_for(running, 60)

    def reach(self) -> Reach:
        return Reach(self.services, self.settings, CLOCK)

    async def status(self) -> MeshStatus:
        async with self.reach() as reach:
            return await mesh_status(reach)


@asynccontextmanager
async def running_mesh(
    services: Sequence[Service],
    broker_url: str,
    database_urls: Mapping[str, str],
    folder: Path,
    /,
    **changes: Any,
) -> AsyncIterator[RunningMesh]:
    """The services with these databases, at the current migration, and names of their own on the
    broker. `changes` are other settings."""
    for name, url in database_urls.items():
        database = Database(url, service=name)
        await migration.upgrade(database)
        await database.close()
    settings = Settings(
        **{
            "broker_url": broker_url,
            "broker_prefix": f"t{uuid.uuid4().hex[:12]}",
            "database_urls": dict(database_urls),
            "schemas": folder / "schemas",
            **changes,
        }
    )
    for service in services:
        service.configure(settings)
    try:
        yield RunningMesh(services, settings)
    finally:
        for service in services:
            await service.close()


async def until(condition: Callable[[], Any]) -> None:
    """Wait until a condition on a server holds; it may be asked by a coroutine."""
    async with asyncio.timeout(60):
        while True:
            holds = condition()
            if await holds if asyncio.iscoroutine(holds) else holds:
                return
            await asyncio.sleep(0.02)
