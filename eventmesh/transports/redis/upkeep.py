"""What a consumer does for its subscription beside reading: it keeps what it holds from being given
to others, moves the delayed retries that are due, and tidies up.

A command that fails is tried again. Only when that has lasted so long that a promise would be
broken, the consumer ends for it.
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
from eventmesh.transports.redis import scripts
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.scripts import call

MOVE_INTERVAL = 2.0
"""Seconds in which a retry is noticed that was delayed by a process which died since."""

TIDY_INTERVAL = 5.0
"""Seconds between two trimmings of the streams by one consumer."""

FORGET_AFTER = 300.0
"""Seconds of silence after which a consumer that holds nothing is deleted."""

AGAIN_AFTER = 0.5
"""Seconds after which what failed is tried again."""

MOVE_LIMIT = 100
TRIM_LIMIT = 100_000

Token = tuple[str, bytes]
"""A stream, and the id of an entry in it."""


@dataclass(frozen=True, slots=True)
class _Job:
    """`work` does it once, and returns the seconds until the next time, unless `sooner` is set
    before. Failing for `patience` seconds ends the consumer, which `complaint` tells of."""

    work: Callable[[], Awaitable[float]]
    complaint: str
    patience: float
    first_pause: float
    sooner: asyncio.Event


class Upkeep:
    """The upkeep of one consumer, `name`. `held` is what is pending under its name."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        name: str,
        held: Collection[Token],
        clock: Clock,
        visibility_timeout: float,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._name = name
        self._held = held
        self._clock = clock
        self._lease = visibility_timeout
        self._delay_asked = asyncio.Event()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.redis")

    def start(self) -> list[asyncio.Task[None]]:
        """The tasks; each ends only by an error, or by being cancelled."""
        lease, never = self._lease, asyncio.Event()
        jobs = [
            _Job(self._keep, "deliveries are not kept alive", lease / 2, lease / 3, never),
            _Job(self._move_due, "delayed retries are not moved", lease, 0.0, self._delay_asked),
            _Job(self._tidy, "streams are not tidied", math.inf, TIDY_INTERVAL, never),
        ]
        return [asyncio.create_task(self._repeat(job)) for job in jobs]

    def delay_asked(self) -> None:
        """This consumer has delayed something: it may be due before what is known of."""
        self._delay_asked.set()

    async def _repeat(self, job: _Job) -> None:
        """Do a job for ever; Unreachable when it has failed for too long."""
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
                if failures == 2:  # the first may be the end of Redis, of which others tell
                    self._log.warning(
                        job.complaint, subscription=self._keys.group, error=str(error)
                    )
                if self._clock.monotonic() - failing_since >= job.patience:
                    raise
                pause = min(AGAIN_AFTER, job.patience / 4)
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

    async def _keep(self) -> float:
        """Show a sign of life for all that is held, three times per visibility timeout."""
        commands = []
        for stream in self._keys.streams:
            if ids := [entry_id for key, entry_id in self._held if key == stream]:
                commands.append(call(scripts.KEEP, (stream,), self._keys.group, self._name, *ids))
        await self._redis.batch(commands)
        return self._lease / 3

    async def _move_due(self) -> float:
        """Move delayed retries to the retry stream as soon as they are due."""
        keys = self._keys
        next_ms = await self._redis.run(
            scripts.MOVE_DUE, (keys.delayed, keys.retry), MOVE_LIMIT, self._clock.new_id()
        )
        return MOVE_INTERVAL if next_ms < 0 else float(min(next_ms / 1000, MOVE_INTERVAL))

    async def _tidy(self) -> float:
        """Trim what every group has acknowledged; forget consumers that are long gone."""
        keys = self._keys
        forget_ms = int(FORGET_AFTER * 1000)
        commands = [call(scripts.FORGET, (key,), keys.group, forget_ms) for key in keys.streams]
        full = [stream for stream in keys.streams if stream != keys.retry]
        while full:
            trimming = [call(scripts.TRIM, (stream,), TRIM_LIMIT) for stream in full]
            answers = await self._redis.attempt([*trimming, *commands])
            for answer in answers:
                if isinstance(answer, ResponseError):
                    raise self._redis.refusal(answer)
            full = [stream for stream, cut in zip(full, answers, strict=False) if cut]
            commands = []
        return TIDY_INTERVAL
