"""`eventmesh worker --workers N`: a parent of N equal processes, which live and die together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import structlog

_KNOWN_CODES = (2, 3, 4, 5)
"""Exit codes with which a child says what is wrong; any other end counts as a crash."""

_GRACE = 5.0  # seconds beyond the drain


async def supervise(command: Sequence[str], workers: int, drain_timeout: float) -> int:
    """Run `command` in this many processes until told to stop, or until one ends by itself.

    Their standard input is a pipe that ends with this process, so that none outlives it.

    Then all are drained. Returns 0 after a clean drain, the code with which a child said what is
    wrong, or 1 when one crashed.
    """
    log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.supervisor")
    stop = asyncio.Event()
    # Sessions of their own, so that a terminal's Ctrl-C reaches them once, through us: a second
    # signal would abort them.
    children = [
        await asyncio.create_subprocess_exec(
            *command, start_new_session=True, stdin=asyncio.subprocess.PIPE
        )
        for _ in range(workers)
    ]

    def tell() -> None:
        stop.set()
        for child in children:
            if child.returncode is None:
                child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, tell)
    ends = [asyncio.ensure_future(child.wait()) for child in children]
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([*ends, stopping], return_when=asyncio.FIRST_COMPLETED)
    died = not stop.is_set()
    if died:
        dead = next(child for child in children if child.returncode is not None)
        log.error("a worker ended by itself", pid=dead.pid, exit_code=dead.returncode)
        tell()
    _, late = await asyncio.wait(ends, timeout=drain_timeout + _GRACE)
    for child in children:
        if child.returncode is None:
            child.kill()
    if late:
        await asyncio.wait(ends)
    stopping.cancel()
    return exit_code([child.returncode or 0 for child in children]) or int(died)


def exit_code(codes: Sequence[int]) -> int:
    """The parent's exit code: what the first failed child said, or 1 when it could say nothing."""
    failed = [code for code in codes if code]
    if not failed:
        return 0
    return next((code for code in failed if code in _KNOWN_CODES), 1)
