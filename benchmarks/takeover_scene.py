"""Worker processes that can be killed, a steady stream of messages through the outbox that they
share, and a look at what comes to Redis: the scene of `benchmarks.takeover`."""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.measure import Broken
from benchmarks.processes import Program, running
from benchmarks.takeover_service import Counted
from eventmesh import Service
from eventmesh.persistence import tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import bucket_of

ROOT = Path(__file__).parents[1]
PROJECT = '[tool.eventmesh.services]\nbench = "shared:service"\n'
MODULE = "from benchmarks.takeover_service import make_service\n\nservice = make_service()\n"
ACCOUNTS = tuple(f"account-{number}" for number in range(64))
LOOK_EVERY = 0.02
PATIENCE = 60.0
"""Seconds within which all that is waited for must happen."""

Buckets = frozenset[int]


@dataclass
class Stored:
    """What was committed: the numbers up to `last`."""

    last: int = 0

    async def go_on(self, service: Service, rate: float, stop: asyncio.Event) -> None:
        """Commit a message at a time, each of the next account, so many a second if that goes."""
        began = time.perf_counter()
        for account in itertools.cycle(ACCOUNTS):
            await asyncio.sleep(max(0.0, began + self.last / rate - time.perf_counter()))
            if stop.is_set():
                return
            async with service.transaction() as tx:
                tx.publish(Counted(account=account, number=self.last + 1))
            self.last += 1


@dataclass
class Stream:
    """What has come to Redis, read by a plain client."""

    client: Any  # redis-py's stubs know neither its replies in RESP2 nor bytes as names
    name: str
    seen: list[tuple[float, str, int]] = field(default_factory=list)
    """When, in Redis's seconds, of which account, and which number."""

    async def watch(self) -> None:
        """Read until cancelled."""
        last: Any = "0"
        while True:
            for _, entries in await self.client.xread({self.name: last}, block=500) or ():
                for last, fields in entries:
                    event = Counted.model_validate_json(fields[b"data"])
                    at = int(last.partition(b"-")[0]) / 1000
                    self.seen.append((at, event.account, event.number))

    async def now(self) -> float:
        """The time by Redis's clock."""
        seconds, microseconds = await self.client.time()
        return float(seconds + microseconds / 1e6)

    def arrivals(self, buckets: Collection[int], after: int) -> dict[int, float]:
        """When the first message with a higher number came, by bucket, where one has come."""
        found: dict[int, float] = {}
        for at, account, number in self.seen:
            bucket = bucket_of(account, "")
            if number > after and bucket in buckets:
                found.setdefault(bucket, at)
        return found

    def out_of_order(self) -> int:
        """How many messages came first after a later one of their account. A copy of one that was
        there already is none of these."""
        last: dict[str, int] = {}
        known: set[int] = set()
        late = 0
        for _, account, number in self.seen:
            if number not in known:
                known.add(number)
                late += number < last.get(account, 0)
                last[account] = max(number, last.get(account, 0))
        return late

    def copies(self) -> int:
        """How many messages came to Redis that were there already."""
        return len(self.seen) - len({number for _, _, number in self.seen})


class Workers:
    """Worker processes of one service, by the names under which their relays have leases."""

    def __init__(self, database: Database, environment: Mapping[str, str]) -> None:
        self._database = database
        self._environment = environment
        self._running: dict[str, tuple[Program, ExitStack]] = {}

    async def start(self) -> None:
        """Start one more, and wait until the buckets are shared out evenly."""
        before = set(await self.buckets())
        with ExitStack() as stack:
            program = stack.enter_context(_worker(self._environment))
            await until(self._shared_out, "shares that are even", len(self._running) + 1)
            (owner,) = set(await self.buckets()) - before
            self._running[owner] = program, stack.pop_all()

    def owners(self) -> list[str]:
        """Those that run."""
        return list(self._running)

    def kill(self, owner: str) -> None:
        """End one by SIGKILL; returns when it is gone."""
        program, stack = self._running.pop(owner)
        program.kill()
        stack.close()

    def close(self) -> None:
        """End all."""
        for _, stack in self._running.values():
            stack.close()

    async def buckets(self) -> dict[str, Buckets]:
        """Who has which, dead or alive."""
        async with self._database.reading() as connection:
            rows = (await connection.execute(select(tables.lease))).all()
        owners = {row.owner for row in rows if row.owner is not None}
        return {each: frozenset(row.bucket for row in rows if row.owner == each) for each in owners}

    async def _shared_out(self, among: int) -> bool:
        held = [len(each) for each in (await self.buckets()).values()]
        return len(held) == among and sum(held) == tables.BUCKETS and max(held) - min(held) <= 1


async def until(condition: Callable[..., Awaitable[bool]], what: str, *arguments: Any) -> None:
    """Wait for a condition; Broken when it takes too long."""
    deadline = time.perf_counter() + PATIENCE
    while not await condition(*arguments):
        if time.perf_counter() > deadline:
            raise Broken(f"waited {PATIENCE:g} s for {what}")
        await asyncio.sleep(LOOK_EVERY)


@contextmanager
def _worker(environment: Mapping[str, str]) -> Iterator[Program]:
    with tempfile.TemporaryDirectory(prefix="eventmesh-bench-") as name:
        folder = Path(name)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "shared.py").write_text(MODULE)
        command = [sys.executable, "-m", "eventmesh", "worker", "--no-supervise", "bench"]
        with running(command, folder, {"PYTHONPATH": str(ROOT), **environment}) as program:
            yield program
