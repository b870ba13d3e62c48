"""What a consumer does for its subscription beside reading.

- Heartbeats: it resets the idle time of its pending entries, so that no other consumer claims them.
- It moves delayed retries that are due to the retry stream. Every consumer of the subscription does
  this for all of them, so that a retry does not depend on the worker that asked for it.
- It shows that the consumer is alive, also if nothing arrives.
- It trims entries that every group has acknowledged, and deletes consumers of dead processes.
- If the subscription was ordered before, it moves what is left in mailboxes to the retry stream.

A failed command is tried again. The consumer ends only if failures last so long that a promise
would be broken: heartbeats, for example, after half the visibility timeout.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection

from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.jobs import Job, repeat
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.scripts.common import call
from eventmesh.transports.redis.scripts.ordering import DISSOLVE
from eventmesh.transports.redis.scripts.upkeep import (
    DELETE_IDLE_CONSUMERS,
    MOVE_DUE,
    RESET_IDLE,
    SHOW_ALIVE,
    TRIM,
)

MOVE_INTERVAL = 2.0
"""Longest seconds between two checks for due retries, which other processes may have delayed."""

TRIM_INTERVAL = 5.0
"""Seconds between two trimmings of the streams by one consumer."""

DELETE_CONSUMER_AFTER = 300.0
"""Idle seconds after which a consumer without pending entries is deleted."""

MOVE_LIMIT = 100
TRIM_LIMIT = 100_000

Token = tuple[str, bytes]
"""What identifies a pending entry: its stream and its id."""


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

    def start(self) -> list[asyncio.Task[None]]:
        """The tasks; each ends only by an error, or by being cancelled."""
        timeout, never = self._visibility_timeout, asyncio.Event()
        jobs = [
            Job(self._heartbeat, "heartbeat failed", timeout / 2, timeout / 3, never),
            Job(self._move_due, "moving due retries failed", timeout, 0.0, self._delay_asked),
            Job(self._trim, "trimming streams failed", math.inf, TRIM_INTERVAL, never),
            Job(self._dissolve, "emptying mailboxes failed", math.inf, 0.0, never),
        ]
        return [asyncio.create_task(repeat(job, self._clock, self._keys.group)) for job in jobs]

    def delay_asked(self) -> None:
        """This consumer has delayed a message, which may be due before all others."""
        self._delay_asked.set()

    async def _heartbeat(self) -> float:
        """Reset the idle time of all pending entries, three times per visibility timeout."""
        commands = []
        for stream in self._keys.streams:
            if ids := [entry_id for key, entry_id in self._pending if key == stream]:
                commands.append(call(RESET_IDLE, (stream,), self._keys.group, self._name, *ids))
        await self._redis.batch(commands)
        return self._visibility_timeout / 3

    async def _move_due(self) -> float:
        """Move delayed retries to the retry stream as soon as they are due; and show that this
        consumer is alive."""
        keys = self._keys
        next_ms, _ = await self._redis.batch(
            [
                call(MOVE_DUE, (keys.delayed, keys.retry), MOVE_LIMIT, self._clock.new_id()),
                call(SHOW_ALIVE, (keys.retry,), keys.group, self._name),
            ]
        )
        return MOVE_INTERVAL if next_ms < 0 else float(min(next_ms / 1000, MOVE_INTERVAL))

    async def _dissolve(self) -> float:
        """Move what is left in mailboxes, if the subscription was ordered before."""
        more = await self._redis.run(DISSOLVE, self._keys.ordered, self._keys.group, MOVE_LIMIT)
        return 0.0 if more else TRIM_INTERVAL

    async def _trim(self) -> float:
        await trim(self._redis, self._keys)
        return TRIM_INTERVAL


async def trim(redis: Redis, keys: Keys) -> None:
    """Trim what every group has acknowledged, and delete consumers of dead processes."""
    idle_ms = int(DELETE_CONSUMER_AFTER * 1000)
    commands = [call(DELETE_IDLE_CONSUMERS, (key,), keys.group, idle_ms) for key in keys.streams]
    full = [stream for stream in keys.streams if stream != keys.retry]
    while full:
        trimming = [call(TRIM, (stream,), TRIM_LIMIT) for stream in full]
        answers = await redis.attempt([*trimming, *commands])
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise redis.rejection(answer)
        full = [stream for stream, cut in zip(full, answers, strict=False) if cut]
        commands = []
