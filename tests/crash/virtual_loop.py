"""The testing kit's event loop, on which the broker's file needs no thread either."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

from eventmesh.testing.virtual.loop import VirtualLoop, place_of
from tests.crash.crash_points import current_run

_LOCK_RETRY = 0.001  # virtual seconds between two attempts to get a lock
_LOCK_TIMEOUT = 30.0


class ThreadlessLoop(VirtualLoop):
    """`start` is the first virtual time."""

    def __init__(self, start: float, *, with_servers: bool) -> None:
        super().__init__(with_servers=with_servers)
        self.jump(start)
        self.observers: dict[str, Any] = {}
        """The test's own connections, by their URLs."""

    def run_in_executor(  # type: ignore[override]  # type checkers need not relate them here
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run the function on the loop instead of in a thread. If another connection holds the
        lock, try again later, so that the holder can go on."""
        caller = asyncio.current_task()
        place = "" if caller is None else place_of(caller)

        async def work() -> Any:
            until = self.now + _LOCK_TIMEOUT
            if (run := current_run()) is not None:
                run.reach("call", place)
                if not run.is_running:
                    await run.running_again()
            while True:
                try:
                    return func(*args)
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or self.now >= until:
                        raise
                await asyncio.sleep(_LOCK_RETRY)

        return self.create_task(work())
