"""What a consumer of an ordered subscription does beside reading.

- Heartbeats, so that nobody gives its keys to others.
- It looks for consumers whose connection is gone, because their process was killed: their keys are
  free within seconds, and not only after the visibility timeout. This needs CLIENT LIST. A consumer
  that lost its connection makes a new one at once, so only one without for two looks is dead.
- It trims entries that every group has.
"""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any, Protocol

from eventmesh.clock import Clock
from eventmesh.transports.redis.connection import CommandRejected, Redis
from eventmesh.transports.redis.jobs import Job, repeat
from eventmesh.transports.redis.keys import Keys
from eventmesh.transports.redis.scripts.ordering import BEAT, PEERS, TAKE_OVER
from eventmesh.transports.redis.upkeep import TRIM_INTERVAL, trim

PEERS_INTERVAL = 1.5
"""Seconds between two looks for dead consumers. With two looks, keys of a killed consumer are free
within 3 s."""

FORBIDDEN_PAUSE = 86_400.0
"""Seconds until CLIENT LIST is tried again, if our user may not use it."""

_CLIENT_ID = re.compile(rb"\bid=([0-9]+)\b")


class Beating(Protocol):
    """Whoever sends heartbeats."""

    def beaten(self, at: float, *, is_alive: bool) -> None:
        """Redis answered a heartbeat that was sent at this time."""
        ...


class OrderedUpkeep:
    """The upkeep of the consumer `name`."""

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        name: str,
        clock: Clock,
        visibility_timeout: float,
        consumer: Beating,
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._name = name
        self._clock = clock
        self._visibility_timeout = visibility_timeout
        self._consumer = consumer
        self._missed: set[tuple[bytes, bytes]] = set()

    def start(self) -> list[asyncio.Task[None]]:
        """The tasks; each ends only by an error, or by being cancelled."""
        timeout, never = self._visibility_timeout, asyncio.Event()
        pause = PEERS_INTERVAL
        jobs = [
            Job(self._heartbeat, "heartbeat failed", timeout / 2, timeout / 3, never),
            Job(self._watch_peers, "looking for dead consumers failed", math.inf, pause, never),
            Job(self._trim, "trimming streams failed", math.inf, TRIM_INTERVAL, never),
        ]
        group = self._keys.group
        return [asyncio.create_task(repeat(job, self._clock, group)) for job in jobs]

    async def _heartbeat(self) -> float:
        begun = self._clock.monotonic()
        lifetime_ms = math.ceil(self._visibility_timeout * 1000)
        answer = await self._run(BEAT, self._name, lifetime_ms)
        self._consumer.beaten(begun, is_alive=bool(answer))
        return self._visibility_timeout / 3

    async def _watch_peers(self) -> float:
        peers = {(name, client) for name, client in await self._run(PEERS, self._name)}
        if peers:
            try:
                listed = await self._redis.ask(
                    "CLIENT", "LIST", "ID", *(client for _, client in peers)
                )
            except CommandRejected:  # forbidden, so keys are free after the visibility timeout
                return FORBIDDEN_PAUSE
            alive = set(_CLIENT_ID.findall(listed))
            missing = {peer for peer in peers if peer[1] not in alive}
            for name, client in missing & self._missed:
                await self._run(TAKE_OVER, name, client)
            self._missed = missing
        return PEERS_INTERVAL

    async def _trim(self) -> float:
        await trim(self._redis, self._keys)
        return TRIM_INTERVAL

    async def _run(self, script: str, *arguments: str | bytes | int) -> Any:
        return await self._redis.run(script, self._keys.ordered, self._keys.group, *arguments)
