"""One worker process of a mesh: a service, as `eventmesh worker` would run it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.mesh.broker import MeshTransport
from eventmesh.testing.virtual.process import Process
from eventmesh.transports.base import Transport

_UNWINDING = 5
"""How often the tasks of a dead process are cancelled, a virtual second apart."""


class WorkerProcess:
    """A running worker, which can be killed, paused and drained.

    `watched` is given the worker's own copy of the service before it starts. `is_checked` says that
    the service fits its schemas and the sagas in its database, and the worker need not look.
    """

    def __init__(
        self,
        service: Service,
        process: Process,
        transport: Transport,
        settings: Settings,
        clock: Clock,
        database: Database,
        watched: Callable[[Service], None],
        *,
        is_checked: bool,
    ) -> None:
        self.process = process
        self.service = service.replica(clock, settings, database)
        self.service.on_commit(lambda _: database.notifier.notify_soon())
        watched(self.service)
        self._stopping = asyncio.Event()
        self._killed = asyncio.Event()
        self.worker = Worker([self.service], transport, settings, clock, is_checked=is_checked)
        loop = asyncio.get_running_loop()
        self.task = loop.create_task(self.worker.run(self._stopping), context=process.context())
        self.task.add_done_callback(_noted)

    async def ready(self) -> None:
        """Return once it consumes all subscriptions, or is killed. Raises what its start raised."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self.worker.ready, self._killed)]
        try:
            await asyncio.wait([*waits, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        if self.task.done() and not self.worker.ready.is_set():
            try:
                self.task.result()
            except* Unreachable as errors:  # of its relay, or of what it reads before it consumes
                raise Unreachable(str(errors.exceptions[0])) from errors

    def held(self) -> Iterator[str]:
        """The subscription of each message that it has received and not settled."""
        for connection in self.process.connections:
            if isinstance(connection, MeshTransport):
                yield from connection.held()

    def kill(self, living: Iterable[asyncio.Task[Any]] | None = None) -> None:
        """End it as SIGKILL does; see `Process.kill`."""
        self.process.kill(living)
        self._killed.set()

    async def drain(self) -> None:
        """Let it finish what it began, and end. Raises what ended it otherwise."""
        if self.process.is_dead:
            return
        self.process.resume()
        self._stopping.set()
        await self.task

    async def unwind(self) -> None:
        """After the end of the mesh, let the tasks of a dead process end as if cancelled, so that
        nothing is left of them. Their connections are closed, so that they change nothing."""
        tasks, self.process.tasks = self.process.tasks, set()
        self.process.disturbances = None
        self.process.revive()
        left = tasks
        for _ in range(_UNWINDING):  # some code takes a cancellation for another task's
            for task in left:
                task.cancel()
            if left:
                _, left = await asyncio.wait(left, timeout=1.0)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # which nobody needs to see
        await self.service.close()


def _noted(task: asyncio.Task[None]) -> None:
    """Take note of an error that nobody may ask for: the mesh asks only while it is moved."""
    if not task.cancelled():
        task.exception()
