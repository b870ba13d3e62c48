"""The parent of one or several equal worker processes, which replaces those that die.

A child that ends with a code that says what is wrong, before it ever came to work, ends all: the
services, the settings or the servers are not as they should be, which it has said on standard
error. So that this is said once, the first child starts alone; the others follow when it is ready.
Any other end is a crash, and the child is replaced, ever later.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from eventmesh.clock import Clock
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.trial import would_start

_KNOWN_CODES = (2, 3, 4, 5)
"""Exit codes with which a child says what is wrong; any other end counts as a crash."""

_GRACE = 5.0  # seconds beyond the drain
_STEADY = 30.0  # seconds after which a child that dies counts as the first to do so
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds before a dead child is replaced


@dataclass(eq=False)
class _Child:
    """One worker process. `ready` tells whether it came to work before it ended."""

    process: asyncio.subprocess.Process
    ready: asyncio.Future[bool]
    replaced: bool = False
    successor: asyncio.Future[_Child] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def drain(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()

    def abort(self) -> None:
        """Not by a signal: a service manager may have sent those that it has got already."""
        if self.process.returncode is None and self.process.stdin is not None:
            self.process.stdin.write(b"abort\n")


class Supervisor:
    """Keeps `workers` processes of `command(number, ready_descriptor)` running.

    Each child has as its standard input a pipe that ends with this process, so that none outlives
    it; what is written to it tells the child to abort. A child writes to its ready descriptor when
    it works. `trial` is a command that ends with 0
    where the code as it is now could be run.
    """

    def __init__(
        self,
        command: Callable[[int, int], Sequence[str]],
        trial: Sequence[str],
        *,
        workers: int,
        drain_timeout: float,
        clock: Clock,
    ) -> None:
        self._command = command
        self._trial = trial
        self._workers = workers
        self._drain_timeout = drain_timeout
        self._clock = clock
        self._children: dict[int, _Child] = {}
        self._stop = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._first_has_begun = asyncio.Event()
        self._died = False
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.supervisor")

    async def run(self) -> int:
        """Run until told to stop; SIGHUP replaces the children one after the other, if the trial
        succeeds. From a terminal it means that the terminal is gone, and stops.

        Returns 0 after a clean drain, the code with which a child said what is wrong, or 1 when one
        crashed, whether it was replaced or not.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._tell_all)
        loop.add_signal_handler(signal.SIGHUP, self._told_to_reload)
        helpers = [asyncio.create_task(self._reload()), asyncio.create_task(self._end_late())]
        try:
            codes = await asyncio.gather(*(self._keep(number) for number in range(self._workers)))
        finally:
            for helper in helpers:
                helper.cancel()
        return exit_code(codes) or int(self._died)

    def _tell_all(self) -> None:
        """Stop; told again, the children abort."""
        again = self._stop.is_set()
        self._stop.set()
        for child in self._children.values():
            if again:
                child.abort()
            else:
                child.drain()

    def _told_to_reload(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._tell_all()
        else:
            self._reload_wanted.set()

    async def _keep(self, number: int) -> int:
        """Run one worker after the other until `stop`; returns the last one's exit code."""
        pause = Reconnect(self._clock, first=_FIRST_PAUSE, most=_LONGEST_PAUSE)
        code, worked = 0, False
        if number:
            await _either(self._first_has_begun.wait(), self._stop.wait())
        while not self._stop.is_set():
            child, began_at = await self._start(number), self._clock.monotonic()
            child.ready.add_done_callback(lambda _: self._first_has_begun.set())
            code = await child.process.wait()
            has_worked = await child.ready
            if self._stop.is_set() and not has_worked and code == -signal.SIGTERM:
                code = 0  # it had not begun to listen for signals, and had nothing to finish
            worked = has_worked or worked
            if child.replaced or self._stop.is_set():
                continue
            if not worked and code in _KNOWN_CODES:
                self._tell_all()  # a mistake of the user's, and every child's
                break
            if code:
                self._died = True
            self._log.error(
                "a worker ended by itself and is replaced", pid=child.process.pid, exit_code=code
            )
            if self._clock.monotonic() - began_at > _STEADY:
                pause.succeeded()
            await pause.wait(self._stop)
        return code

    async def _start(self, number: int) -> _Child:
        """Start a child in this place; its predecessor, if there was one, hears of it."""
        receiving, telling = os.pipe()
        try:
            # A session of its own, so that a terminal's Ctrl-C reaches it once, through us: a
            # second signal would abort it.
            process = await asyncio.create_subprocess_exec(
                *self._command(number, telling),
                start_new_session=True,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(telling,),
            )
        finally:
            os.close(telling)
        child = _Child(process, asyncio.ensure_future(_hears(receiving)))
        predecessor = self._children.get(number)
        self._children[number] = child
        if predecessor is not None:
            predecessor.successor.set_result(child)
        if self._stop.is_set():
            child.drain()
        return child

    async def _reload(self) -> None:
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            if await would_start(self._trial):
                for child in list(self._children.values()):
                    await self._replace(child)
                self._log.info("reloaded", workers=self._workers)

    async def _replace(self, child: _Child) -> None:
        """Drain a child; return when its successor works, or has ended."""
        child.replaced = True
        child.drain()
        try:
            async with asyncio.timeout(self._drain_timeout + _GRACE):
                await child.process.wait()
        except TimeoutError:
            child.process.kill()
        await (await child.successor).ready

    async def _end_late(self) -> None:
        """Kill what has not drained in time."""
        await self._stop.wait()
        await self._clock.sleep(self._drain_timeout + _GRACE)
        for child in self._children.values():
            if child.process.returncode is None:
                child.process.kill()


async def _either(*conditions: Coroutine[Any, Any, object]) -> None:
    """Return when one of these has."""
    waits = [asyncio.ensure_future(condition) for condition in conditions]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _hears(descriptor: int) -> bool:
    """Whether anything is written to the pipe before its other end is closed."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return bool(await reader.read(1))
    finally:
        transport.close()


def exit_code(codes: Sequence[int]) -> int:
    """The parent's exit code: what the first failed child said, or 1 when it could say nothing."""
    failed = [code for code in codes if code]
    if not failed:
        return 0
    return next((code for code in failed if code in _KNOWN_CODES), 1)
