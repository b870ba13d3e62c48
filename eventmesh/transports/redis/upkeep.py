"""What a consumer does for its subscription beside reading.

- Heartbeats: it resets the idle time of its pending entries, so that no other consumer claims them.
- It moves delayed retries that are due to the retry stream. Every consumer of the subscription does
  this for all of them, so that a retry does not depend on the worker that asked for it.
- It trims entries that every group has acknowledged, and deletes consumers of dead processes.

A failed command is tried again. The consumer ends only if failures last so long that a promise
would be broken: heartbeats, for example, after half the visibility timeout.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import structlog
from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.scripts.common import call
from eventmesh.transports.redis.scripts.upkeep import (
    DELETE_IDLE_CONSUMERS,
    MOVE_DUE,
    RESET_IDLE,
    TRIM,
)

MOVE_INTERVAL = 2.0
"""Longest seconds between two checks for due retries, which other processes may have delayed."""

TRIM_INTERVAL = 5.0
"""Seconds between two trimmings of the streams by one consumer."""

DELETE_CONSUMER_AFTER = 300.0
"""Idle seconds after which a consumer without pending entries is deleted."""

RETRY_PAUSE = 0.5
"""Seconds until a failed command is tried again."""

MOVE_LIMIT = 100
TRIM_LIMIT = 100_000

Token = tuple[str, bytes]
"""What identifies a pending entry: its stream and its id."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to repeat. `work` returns the seconds until the next run; setting `sooner` shortens
    that. `failed` is the log event of a failure, and failing for `patience` seconds ends the
    consumer."""

    work: Callable[[], Awaitable[float]]
    failed: str
    patience: float
    first_pause: float
    sooner: asyncio.Event


class Upkeep:
    """The upkeep of the consumer `name`; `pending` are the entries pending under its name."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        name: str,
        pending: Collection[Token],
        clock: Clock,
        visibility_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._name = name
        self._pending = pending
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._delay_asked = asyncio.Event()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.redis")

    def start(self) -> list[asyncio.Task[None]]:
        """The tasks; each ends only by an error, or by being cancelled."""
        timeout, never = self._visibility_timeout, asyncio.Event()
        jobs = [
            _Job(self._heartbeat, "heartbeat failed", timeout / 2, timeout / 3, never),
            _Job(self._move_due, "moving due retries failed", timeout, 0.0, self._delay_asked),
            _Job(self._trim, "trimming streams failed", math.inf, TRIM_INTERVAL, never),
        ]
        return [asyncio.create_task(self._repeat(job)) for job in jobs]

    def delay_asked(self) -> None:
        """This consumer has delayed a message, which may be due before all others."""
        self._delay_asked.set()

    async def _repeat(self, job: _Job) -> None:
        """Run a job again and again; Unreachable once it has failed for too long."""
        failures, failing_since = 0, 0.0
        await self._clock.sleep(job.first_pause)
        while True:
            job.sooner.clear()
            begun = self._clock.monotonic()
            try:
                pause = await job.work()
                failures = 0
            except Unreachable as error:
                failures += 1
                if failures == 1:
                    failing_since = begun
                if failures == 2:  # one failure may be a lost connection, logged elsewhere
                    self._log.warning(job.failed, subscription=self._keys.group, error=str(error))
                if self._clock.monotonic() - failing_since >= job.patience:
                    raise
                pause = min(RETRY_PAUSE, job.patience / 4)
            await self._wait(pause, job.sooner)

    async def _wait(self, seconds: float, sooner: asyncio.Event) -> None:
        waits = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(sooner.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _heartbeat(self) -> float:
        """Reset the idle time of all pending entries, three times per visibility timeout."""
        commands = []
        for stream in self._keys.streams:
            if ids := [entry_id for key, entry_id in self._pending if key == stream]:
                commands.append(call(RESET_IDLE, (stream,), self._keys.group, self._name, *ids))
        await self._redis.batch(commands)
        return self._visibility_timeout / 3

    async def _move_due(self) -> float:
        """Move delayed retries to the retry stream as soon as they are due."""
        keys = self._keys
        next_ms = await self._redis.run(
            MOVE_DUE, (keys.delayed, keys.retry), MOVE_LIMIT, self._clock.new_id()
        )
        return MOVE_INTERVAL if next_ms < 0 else float(min(next_ms / 1000, MOVE_INTERVAL))

    async def _trim(self) -> float:
        """Trim what every group has acknowledged, and delete consumers of dead processes."""
        keys = self._keys
        idle_ms = int(DELETE_CONSUMER_AFTER * 1000)
        commands = [
            call(DELETE_IDLE_CONSUMERS, (key,), keys.group, idle_ms) for key in keys.streams
        ]
        full = [stream for stream in keys.streams if stream != keys.retry]
        while full:
            trimming = [call(TRIM, (stream,), TRIM_LIMIT) for stream in full]
            answers = await self._redis.attempt([*trimming, *commands])
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise self._redis.rejection(answer)
            full = [stream for stream, cut in zip(full, answers, strict=False) if cut]
            commands = []
        return TRIM_INTERVAL
