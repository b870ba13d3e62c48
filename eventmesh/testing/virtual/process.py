"""What stands for a process of its own in the virtual world.

Every task that is started in a process's context belongs to it, with all tasks that it starts in
turn. A process that is killed takes no further step, and its connections are cut, as the kernel
would do it; none of its clean-up code runs. One that is paused takes no step until it is resumed:
that is a machine under load, a debugger, or a stopped container.

    state     its steps      its connections
    running   are taken      open
    paused    are held       open
    dead      are dropped    cut
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Callback = tuple[Callable[..., object], tuple[Any, ...], Context]


class Connection(Protocol):
    """What a process holds open, and the kernel closes when it dies."""

    def cut(self) -> None:
        """Close it as a kill does: what was not committed is rolled back."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call to a database or broker is answered: after `delay` seconds; and with an error
    before it was done, or after it, so that nobody knows."""

    delay: float = 0.0
    error: Literal["", "before", "after"] = ""


class Disturbances(Protocol):
    """What goes wrong in a process, asked at each point where it can."""

    @property
    def next_return(self) -> float | None:
        """The time at which the next process goes on, or is started again; None if none is to."""
        ...

    def before_step(self, process: Process, task: asyncio.Task[Any]) -> None:
        """A task is about to take a step; may kill or pause the process."""
        ...

    def answer(self, process: Process, server: str, call: str) -> Answer:
        """A call is made: to the "broker", or to the "database <service>"."""
        ...

    def copies(self, number: int) -> int:
        """How often the broker stores the n-th message that it is given."""
        ...


class Process:
    """One process: `service` is what it runs, `number` counts the processes of this service."""

    def __init__(self, service: str, number: int = 0) -> None:
        self.service = service
        self.number = number
        self.name = f"{service}/{number}" if number else service
        """`orders/1`, or the service's name alone where it has one process."""
        self.is_dead = False
        self.is_paused = False
        self.clock_skew = 0.0
        """Seconds by which its machine's clock is ahead."""
        self.steps = 0
        """How many steps it has taken: of its tasks, and calls to databases."""
        self.calls = 0
        """How many calls to databases and brokers it has made."""
        self.disturbances: Disturbances | None = None
        self.connections: list[Connection] = []
        self._stopped: list[asyncio.Future[None]] = []
        """What waits for it to go on, in the middle of a call."""
        self.held: deque[Callback] = deque()
        """The callbacks that are due while it is paused, or that died with it. A dead process's are
        kept so that its tasks are not collected, which would run their clean-up."""
        self.tasks: set[asyncio.Task[Any]] = set()
        """Those that a kill has stopped, kept for the same reason."""

    def __repr__(self) -> str:
        return f"Process({self.name!r})"

    @property
    def is_running(self) -> bool:
        return not (self.is_dead or self.is_paused)

    def context(self) -> Context:
        """A context for tasks of this process."""
        context = copy_context()
        context.run(CURRENT_PROCESS.set, self)
        return context

    def take_step(self, task: asyncio.Task[Any]) -> None:
        """One of its tasks goes on, unless that kills or pauses the process."""
        if self.disturbances is not None and self.is_running:
            self.steps += 1
            self.disturbances.before_step(self, task)

    async def running_again(self) -> None:
        """Return when it has been resumed; never, if it is dead."""
        waiting = asyncio.get_running_loop().create_future()
        self._stopped.append(waiting)
        await waiting

    def kill(self, living: Iterable[asyncio.Task[Any]] | None = None) -> None:
        """Stop it for good, here and now. `living` are the tasks of all processes, which takes a
        while to find out."""
        self.is_dead = True
        everyone = asyncio.all_tasks() if living is None else living
        self.tasks |= {task for task in everyone if getattr(task, "process", None) is self}
        connections, self.connections = self.connections, []
        outside = Context()  # in which callbacks of connections run as those of no process
        for connection in connections:
            outside.run(connection.cut)

    def pause(self) -> None:
        """Let it take no step until it is resumed."""
        self.is_paused = True

    def resume(self) -> None:
        """Let it go on with what has become due meanwhile."""
        if not self.is_paused or self.is_dead:
            return
        self.is_paused = False
        self._take_held()

    def revive(self) -> None:
        """Let the tasks of a dead process run once more, to be ended in an orderly way."""
        self.is_dead = self.is_paused = False
        self._take_held()

    def _take_held(self) -> None:
        stopped, self._stopped = self._stopped, []
        for future in stopped:
            if not future.done():
                future.set_result(None)
        loop = asyncio.get_running_loop()
        held, self.held = self.held, deque()
        for callback, args, context in held:
            loop.call_soon(callback, *args, context=context)


CURRENT_PROCESS: ContextVar[Process | None] = ContextVar("eventmesh_process", default=None)
"""The process whose step is being taken; None for the test itself."""


@contextmanager
def outside_processes() -> Iterator[None]:
    """While the context is open, what is started belongs to no process."""
    token = CURRENT_PROCESS.set(None)
    try:
        yield
    finally:
        CURRENT_PROCESS.reset(token)
