"""The services feed and till with their worker processes, broker and database.

The feed publishes numbered messages of several accounts; each takes one effect in both
subscriptions of the till, which `effects` reads from the database.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from eventmesh import Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.testing.servers import ControlledServer, Way
from eventmesh.transports.base import (
    Subscription,
    SubscriptionStats,
    Transport,
    TransportOptions,
)
from eventmesh.transports.factory import open_transport
from tests.faults.effects import (
    SUBSCRIPTIONS,
    Account,
    Asked,
    DatabaseAway,
    Effects,
    PostgresReader,
    SqliteReader,
)
from tests.faults.services.feed import service as feed
from tests.faults.services.till import service as till
from tests.integration.conftest import Project, Running
from tests.support.promised_times import allowed
from tests.support.proxy import Proxy, proxy_before

TIMEOUT = 120.0
"""Seconds for any condition to hold; only a failure takes so long."""

RECOVERY = 5.0
"""Seconds from the end of a fault to the next new effect, as promised."""

LOOK_INTERVAL = 0.02
ACCOUNTS = 7
CHUNK = 10
"""Messages published in one transaction."""

CHUNK_INTERVAL = 0.04
"""Seconds between two of these transactions: about half the rate that the till can handle."""

SLOW_CHUNK_INTERVAL = 0.15

MOST_WARNINGS = 10
"""Warnings allowed in one second from one subscription or relay. The pauses between attempts begin
at 50 ms and double, which makes five in a second; and they begin anew after a success, as there are
some while a disk is all but full."""

SETTINGS = {
    "EVENTMESH_VISIBILITY_TIMEOUT": "2s",
    "EVENTMESH_LEASE_TIME": "1s",
    "EVENTMESH_LOG_FORMAT": "json",
}


class Servers(Protocol):
    """Returns the session's server of a kind."""

    def __call__(self, kind: str, way: Way | None = None) -> ControlledServer: ...


@dataclass(frozen=True)
class Endpoints:
    """The broker and database of one test, and the proxies in front of them."""

    broker: str
    database: str
    broker_url: str
    database_url: str
    broker_link: Proxy | None
    database_link: Proxy | None
    servers: Servers
    feed_database_url: str

    @property
    def broker_server(self) -> ControlledServer:
        return self.servers({"redis": "redis", "amqp": "rabbitmq"}[self.broker])

    @property
    def database_server(self) -> ControlledServer:
        return self.servers("postgres")

    @property
    def broker_proxy(self) -> Proxy:
        assert self.broker_link is not None
        return self.broker_link

    @property
    def database_proxy(self) -> Proxy:
        assert self.database_link is not None
        return self.database_link


@dataclass(eq=False)
class SystemUnderTest:
    """The services feed and till on one broker and one database."""

    project: Project
    endpoints: Endpoints
    source: Service
    effects: Effects
    services: tuple[str, ...] = ("feed", "till")
    command: tuple[str, ...] = ()
    """The program to run instead of `eventmesh worker`."""
    harmless_codes: frozenset[int] = frozenset({-signal.SIGKILL})
    """Exit codes that do not count as a crash."""
    asked: list[Asked] = field(default_factory=list)
    workers: list[Running] = field(default_factory=list)
    chance: random.Random = field(default_factory=random.Random)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    # Messages

    async def ask(self, count: int, deed: str = "") -> list[Asked]:
        """Publish this many messages in one transaction. A message with a deed takes no effect."""
        made = []
        async with self.source.transaction() as transaction:
            for number in itertools.islice(self._numbers, count):
                account = f"account-{number % ACCOUNTS}"
                transaction.publish(feed.Asked(account=account, number=number, deed=deed))
                made.append((account, number))
        if not deed:
            self.asked += made
        return made

    async def feed(self, amount: int, fault_is_over: asyncio.Event) -> None:
        """Publish this many messages bit by bit, the last fifth of them once the fault is over.

        If the fault lasts longer, continue with more messages at a lower rate, so that a slow
        machine is not overloaded.
        """
        while not fault_is_over.is_set():
            await self.ask(CHUNK if len(self.asked) < 2 * amount else 1)
            waits_for_the_end = len(self.asked) >= amount * 4 // 5
            await asyncio.sleep(SLOW_CHUNK_INTERVAL if waits_for_the_end else CHUNK_INTERVAL)
        for _ in range(max(amount - len(self.asked), amount // 5) // CHUNK):
            await self.ask(CHUNK)
            await asyncio.sleep(CHUNK_INTERVAL)

    # Processes

    def start_worker(self, *options: str) -> Running:
        """Start a worker process."""
        if self.command:
            running = self.project.start_program(*self.command)
        else:
            running = self.project.start("worker", *self.services, *options)
        self.workers.append(running)
        return running

    async def until_ready(self, running: Running, processes: int = 1) -> None:
        await self.until(
            lambda: running.events().count("worker is ready") >= processes, "a worker that is ready"
        )

    @asynccontextmanager
    async def working(
        self, *options: str, processes: int = 1, exit_code: int = 0
    ) -> AsyncIterator[Running]:
        """Run a worker; on leaving, the worker that runs then is drained."""
        running = self.start_worker(*options)
        await self.until_ready(running, processes)
        yield running
        last = self.workers[-1]
        last.tell(signal.SIGTERM)
        ended = await asyncio.to_thread(last.ended)
        assert ended.code == exit_code, ended.said[-4000:]

    # Waiting

    async def until(self, condition: Callable[[], Any], what: str, limit: float = TIMEOUT) -> None:
        """Poll until the condition holds; it does not while the database is away."""
        deadline = time.monotonic() + limit
        while True:
            with suppress(DatabaseAway, Unreachable):
                holds = condition()
                if holds is True or (isinstance(holds, Awaitable) and await holds):
                    return
            assert not self.crashed(), self.output()
            assert time.monotonic() < deadline, (
                f"waited {limit:g} s for {what}, exit codes {self.codes()}; {self.output()}"
            )
            await asyncio.sleep(LOOK_INTERVAL)

    async def until_effects(self, count: int) -> None:
        await self.until_counted(self.effects.count, count, "effects")

    async def until_counted(
        self, counted: Callable[[], Awaitable[int]], least: int, what: str
    ) -> None:
        """Wait until at least this many are counted. The limit is for the next one, however long
        a slow machine takes for all of them."""
        so_far = -1

        async def more() -> bool:
            nonlocal so_far
            before, so_far = so_far, await counted()
            return so_far > before

        while so_far < least:
            await self.until(more, f"{least} {what}, after {so_far}")

    async def until_all_effects(self) -> None:
        """Wait until every message has taken all its effects and no queue or outbox holds any."""
        try:
            await self.until_effects(len(self.asked) * len(SUBSCRIPTIONS))
        except AssertionError as error:
            account = await self.effects.account(self.asked)
            raise AssertionError(f"{account}; {error}") from None
        await self.until(self._nothing_waits, "outboxes and queues that are empty")

    async def recovery(self, ended: float, within: float = RECOVERY) -> float:
        """Seconds from `ended`, a time.time(), to the first effect after it."""

        async def newer() -> bool:
            return await self.effects.newest() > ended

        await self.until(newer, "a new effect", allowed(2 * within))
        return time.time() - ended

    @asynccontextmanager
    async def transport(self) -> AsyncIterator[Transport]:
        """The broker with these services' prefix, without a proxy."""
        options = TransportOptions(prefix=self.project.prefix)
        async with open_transport(self.endpoints.broker_url, SystemClock(), options) as transport:
            yield transport

    async def _nothing_waits(self) -> bool:
        async with self.transport() as transport:
            stats = [await transport.stats(each) for each in subscriptions()]
        return all(map(is_empty, stats)) and await self.effects.waiting() == 0

    # What it came to

    async def account(self) -> Account:
        return await self.effects.account(self.asked)

    def crashed(self) -> list[int]:
        """The exit codes of workers that exited without being told to."""
        return [code for code in self.codes() if code not in {None, *self.harmless_codes}]

    def codes(self) -> list[int | None]:
        """The exit codes of the workers; None for running ones."""
        return [each.process.poll() for each in self.workers]

    def output(self) -> str:
        """The last output of the workers."""
        return "\n".join(each.err[-2000:] for each in self.workers)

    def events(self) -> Counter[str]:
        """The workers' log events and their numbers."""
        return Counter(event for each in self.workers for event in each.events())

    def warnings_per_second(self) -> int:
        """The largest number of warnings of one subscription or relay within one second.

        Fails on a traceback, and on output that is not a log line.
        """
        most = 0
        for each in self.workers:
            assert "Traceback" not in each.err, each.err
            times_by_source: dict[object, list[float]] = {}
            for line in each.lines():
                if line["level"] in ("warning", "error", "critical"):
                    source = (line["event"], line.get("subscription"), line.get("service"))
                    at = datetime.fromisoformat(line["timestamp"]).timestamp()
                    times_by_source.setdefault(source, []).append(at)
            for times in times_by_source.values():
                most = max(most, *(sum(at <= t < at + 1 for t in times) for at in times))
        return most


def subscriptions() -> list[Subscription]:
    return [handler.subscription for handler in till.service.handlers.values()]


def is_empty(stats: SubscriptionStats) -> bool:
    return not (stats.ready or stats.delayed or stats.in_flight)


@asynccontextmanager
async def system_at(project: Project, endpoints: Endpoints) -> AsyncIterator[SystemUnderTest]:
    """The services with their databases created, without workers yet."""
    copy_services(project.root)
    project.environment |= SETTINGS | {
        "EVENTMESH_BROKER_URL": endpoints.broker_link.url
        if endpoints.broker_link
        else endpoints.broker_url,
        "EVENTMESH_FEED_DATABASE_URL": endpoints.feed_database_url,
        "EVENTMESH_TILL_DATABASE_URL": (
            endpoints.database_link.url if endpoints.database_link else endpoints.database_url
        ),
    }
    database = Database(endpoints.database_url, service="till")
    try:
        await migration.upgrade(database, till.Base.metadata)
    finally:
        await database.close()
    source = Service("feed")
    source.publisher(feed.Asked)
    source.configure(
        Settings(
            database_urls={"feed": endpoints.feed_database_url}, schemas=project.root / "schemas"
        )
    )
    reader = SqliteReader if endpoints.database == "sqlite" else PostgresReader
    async with source:
        yield SystemUnderTest(project, endpoints, source, Effects(reader(endpoints.database_url)))


def copy_services(root: Path) -> None:
    """Put the services into a user's project."""
    shutil.copytree(
        Path(__file__).parent / "services",
        root / "services",
        ignore=shutil.ignore_patterns("__pycache__"),
    )


@asynccontextmanager
async def linked(url: str, through_proxy: bool) -> AsyncIterator[Proxy | None]:
    async with AsyncExitStack() as stack:
        yield await stack.enter_async_context(proxy_before(url)) if through_proxy else None


def kill(running: Running) -> None:
    """SIGKILL, and nobody to say goodbye to."""
    running.process.send_signal(signal.SIGKILL)
    running.process.wait()
