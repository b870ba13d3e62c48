"""A request to a service's web application, answered in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from eventmesh.errors import Unreachable
from eventmesh.persistence.database_errors import connection_lost
from eventmesh.testing.virtual.process import Process


class Request:
    """A call that was made in a process, which can be killed or paused meanwhile."""

    def __init__(self, process: Process, call: Callable[[], Awaitable[None]]) -> None:
        self.process = process
        self._killed = asyncio.Event()

        async def answer() -> None:
            await call()

        self._task = asyncio.get_running_loop().create_task(answer(), context=process.context())

    async def ended(self) -> bool:
        """Return once it has been answered: false if its process was killed, or lost its database,
        which the client sees as an error 500. Raises what it raised otherwise."""
        killed = asyncio.ensure_future(self._killed.wait())
        try:
            await asyncio.wait([self._task, killed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            killed.cancel()
        if not self._task.done():
            return False
        try:
            self._task.result()
        except Exception as error:
            if not (isinstance(error, Unreachable) or connection_lost(error)):
                raise
            return False
        return True

    def kill(self) -> None:
        """End its process as SIGKILL does."""
        self.process.kill()
        self._killed.set()

    async def unwind(self) -> None:
        """After the end of the mesh, let it end as if cancelled, if it was killed."""
        self.process.disturbances = None
        self.process.revive()
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
