"""What a consumer repeats in the background.

A failed job is tried again. It ends only if failures last so long that a promise would be broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable

RETRY_PAUSE = 0.5
"""Seconds until a failed command is tried again."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something to repeat. `work` returns the seconds until the next run; setting `sooner` shortens
    that. `failed` is the log event of a failure, and failing for `patience` seconds ends the
    job."""

    work: Callable[[], Awaitable[float]]
    failed: str
    patience: float
    first_pause: float
    sooner: asyncio.Event


async def repeat(job: Job, clock: Clock, subscription: str) -> None:
    """Run a job again and again; Unreachable once it has failed for too long."""
    log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.redis")
    failures, failing_since = 0, 0.0
    await clock.sleep(job.first_pause)
    while True:
        job.sooner.clear()
        begun = clock.monotonic()
        try:
            pause = await job.work()
            failures = 0
        except Unreachable as error:
            failures += 1
            if failures == 1:
                failing_since = begun
            if failures == 2:  # one failure may be a lost connection, logged elsewhere
                log.warning(job.failed, subscription=subscription, error=str(error))
            if clock.monotonic() - failing_since >= job.patience:
                raise
            pause = min(RETRY_PAUSE, job.patience / 4)
        await _wait(pause, job.sooner, clock)


async def _wait(seconds: float, sooner: asyncio.Event, clock: Clock) -> None:
    waits = [asyncio.ensure_future(clock.sleep(seconds)), asyncio.ensure_future(sooner.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
