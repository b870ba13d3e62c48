"""The parent of identical worker processes, which replaces those that die.

A child that exits before it was ever ready, with one of the exit codes for a known problem, ends
the whole program: the services, the settings or the servers are wrong, and the child has printed
the error. To print it only once, the first child starts alone and the others follow when it is
ready. Every other exit counts as a crash. The child is then replaced after a pause, which grows
from 0.5 s to 10 s while children keep crashing and starts over once one has run for 30 s.
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
"""Exit codes of errors that the child has printed; any other exit counts as a crash."""

_GRACE = 5.0  # seconds beyond the drain timeout before a child is killed
_STEADY = 30.0  # seconds after which a crash starts with the first pause again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds before a dead child is replaced


@dataclass(eq=False)
class _Child:
    """One worker process. `ready` is True once it is ready, or False if it exits before."""

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
        """Through its pipe: signals may already have reached it from a service manager."""
        if self.process.returncode is None and self.process.stdin is not None:
            self.process.stdin.write(b"abort\n")


class Supervisor:
    """Keeps `workers` processes of `command(number, ready_descriptor)` running.

    The standard input of each child is a pipe from this process. Its end tells the child that the
    parent is gone, so that no child outlives it; anything written to it tells the child to abort. A
    child writes to its ready descriptor once it is ready. `trial` is a command that exits with 0 if
    the current code can start.
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
        self._stopping = asyncio.Event()
        self._reload_requested = asyncio.Event()
        self._first_started = asyncio.Event()
        self._died = False
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.supervisor")

    async def run(self) -> int:
        """Run until a signal stops it; returns the exit code.

        SIGHUP replaces the children one after another if the trial succeeds. In a terminal, SIGHUP
        means that the terminal was closed, and stops. The exit code is 0 after a clean drain, the
        code of the first child with a known problem, or 1 if any child has crashed, even if it was
        replaced.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_all)
        loop.add_signal_handler(signal.SIGHUP, self._on_sighup)
        helpers = [asyncio.create_task(self._reload()), asyncio.create_task(self._kill_overdue())]
        try:
            codes = await asyncio.gather(*(self._keep(number) for number in range(self._workers)))
        finally:
            for helper in helpers:
                helper.cancel()
        return exit_code(codes) or int(self._died)

    def _stop_all(self) -> None:
        """Drain all children; abort them the second time."""
        again = self._stopping.is_set()
        self._stopping.set()
        for child in self._children.values():
            if again:
                child.abort()
            else:
                child.drain()

    def _on_sighup(self) -> None:
        if sys.stdin is not None and sys.stdin.isatty():
            self._stop_all()
        else:
            self._reload_requested.set()

    async def _keep(self, number: int) -> int:
        """Run one worker after another in this slot until `stop`; returns the last exit code."""
        pause = Reconnect(self._clock, first=_FIRST_PAUSE, most=_LONGEST_PAUSE)
        code, worked = 0, False
        if number:
            await _either(self._first_started.wait(), self._stopping.wait())
        while not self._stopping.is_set():
            child, began_at = await self._start(number), self._clock.monotonic()
            child.ready.add_done_callback(self._let_others_start)
            code = await child.process.wait()
            has_worked = await child.ready
            if self._stopping.is_set() and not has_worked and code == -signal.SIGTERM:
                code = 0  # it died before it handled signals, and had nothing to finish
            worked = has_worked or worked
            if child.replaced or self._stopping.is_set():
                continue
            if not worked and code in _KNOWN_CODES:
                self._stop_all()  # every other child would fail in the same way
                break
            self._first_started.set()
            if code:
                self._died = True
            self._log.error("worker exited, restarting", pid=child.process.pid, exit_code=code)
            if self._clock.monotonic() - began_at > _STEADY:
                pause.succeeded()
            await pause.wait(self._stopping)
        return code

    def _let_others_start(self, ready: asyncio.Future[bool]) -> None:
        """If a child is ready. One that ends before has printed what the others would print."""
        if not ready.cancelled() and ready.result():
            self._first_started.set()

    async def _start(self, number: int) -> _Child:
        """Start a child in this slot, and record it as its predecessor's successor."""
        reading, writing = os.pipe()
        try:
            # In a new session, so that Ctrl-C in a terminal reaches the child once, through this
            # process: a second signal would abort it.
            process = await asyncio.create_subprocess_exec(
                *self._command(number, writing),
                start_new_session=True,
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(writing,),
            )
        finally:
            os.close(writing)
        child = _Child(process, asyncio.ensure_future(_is_written(reading)))
        predecessor = self._children.get(number)
        self._children[number] = child
        if predecessor is not None:
            predecessor.successor.set_result(child)
        if self._stopping.is_set():
            child.drain()
        return child

    async def _reload(self) -> None:
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            if await would_start(self._trial):
                for child in list(self._children.values()):
                    await self._replace(child)
                self._log.info("workers reloaded", workers=self._workers)

    async def _replace(self, child: _Child) -> None:
        """Drain a child; return once its successor is ready or has exited."""
        child.replaced = True
        child.drain()
        try:
            async with asyncio.timeout(self._drain_timeout + _GRACE):
                await child.process.wait()
        except TimeoutError:
            child.process.kill()
        await (await child.successor).ready

    async def _kill_overdue(self) -> None:
        """Kill the children that have not drained in time."""
        await self._stopping.wait()
        await self._clock.sleep(self._drain_timeout + _GRACE)
        for child in self._children.values():
            if child.process.returncode is None:
                child.process.kill()


async def _either(*conditions: Coroutine[Any, Any, object]) -> None:
    """Return when one of these has returned."""
    waits = [asyncio.ensure_future(condition) for condition in conditions]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _is_written(descriptor: int) -> bool:
    """Whether anything is written to the pipe before its writing end is closed."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return bool(await reader.read(1))
    finally:
        transport.close()


def exit_code(codes: Sequence[int]) -> int:
    """The parent's exit code: the first child's code for a known problem, or 1 for a crash."""
    failed = [code for code in codes if code]
    if not failed:
        return 0
    return next((code for code in failed if code in _KNOWN_CODES), 1)
