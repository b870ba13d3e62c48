"""Nodes of a RabbitMQ cluster are killed under load: `python -m benchmarks.rabbitmq_cluster`.

Needs Docker. Three nodes in containers form a cluster. The service `shop` publishes events, with
keys, through its outbox; a worker process runs the service `ledger`, which writes each of them
down in its database. Twice, while both work, a node is killed by SIGKILL and later started again:
first the one that leads the ledger's queue, then, when that one is back, the one that the ledger's
worker consumes from.

In the end the ledger must have each event exactly once, and each key's in their order. (Without
`--ordered`, order is promised to one consumer at a time: with `--workers 2` it is counted, and not
required.) The exit code is 1 when something was lost, doubled, or out of order. Containers, their
network and all files are removed whatever happens, and have the label `eventmesh.cluster` while
they are there. `benchmarks.redis_cluster` makes the same run on a Redis Cluster.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.rabbitmq_cluster_nodes import (
    CLUSTER_PATIENCE,
    Failed,
    docker,
    running_cluster,
    until,
)
from benchmarks.rabbitmq_cluster_service import Entry, Sold, shop
from eventmesh.clock import SystemClock
from eventmesh.errors import EventMeshError
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.factory import open_transport

QUEUE = "eventmesh.queue.ledger.write_down"
PARTITION = "eventmesh.partition.ledger.write_down.16.0"
BATCH = 20
"""Events in one transaction of the shop."""

QUIET = 3.0
"""Seconds without a new effect after which no more are expected."""

NOTICEABLE = 0.25
"""Seconds without an effect, at hundreds of events a second, that count as a pause."""

SLOWER = 20

FIRST_KILL, SECOND_KILL = 0.2, 0.6
"""The part of all events that is written down when a node is killed."""


# --- the services ---


@dataclass(frozen=True)
class Effect:
    """One row of the ledger, in the order in which they were committed."""

    customer: str
    number: int
    at: float


class Ledger:
    """The worker process of the ledger, and its database."""

    def __init__(
        self, folder: Path, broker_url: str, database_url: str, workers: int, *, ordered: bool
    ) -> None:
        self._folder = folder
        self._workers = workers
        self._engine = create_async_engine(driver_of(database_url))
        root = Path(__file__).parents[1]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "EVENTMESH_BROKER_URL": broker_url,
            "EVENTMESH_LEDGER_DATABASE_URL": database_url,
            "EVENTMESH_LOG_FORMAT": "json",
            "LEDGER_ORDERED": "yes" if ordered else "no",
        }

    @property
    def log(self) -> str:
        return (self._folder / "ledger.log").read_text(errors="replace")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The worker, once it consumes; stopped in good order on leaving."""
        (self._folder / "pyproject.toml").write_text(
            '[tool.eventmesh.services]\nledger = "benchmarks.rabbitmq_cluster_service:ledger"\n'
        )
        await self._command("db", "upgrade", "ledger")
        with (self._folder / "ledger.log").open("wb") as log:
            worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "eventmesh", "worker", "ledger"),
                *("--workers", str(self._workers)),
                cwd=self._folder,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            await until(
                lambda: self._is_ready(worker), "the ledger's worker to be ready", CLUSTER_PATIENCE
            )
            yield
        finally:
            if worker.returncode is None:
                worker.send_signal(signal.SIGTERM)
                try:
                    await asyncio.wait_for(worker.wait(), 60)
                except TimeoutError:
                    worker.kill()
                    await worker.wait()
            await self._engine.dispose()

    async def effects(self) -> list[Effect]:
        """All of them so far."""
        columns = (Entry.customer, Entry.number, Entry.at)
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(*columns).order_by(Entry.seq))
            return [Effect(*row) for row in rows]

    async def _is_ready(self, worker: asyncio.subprocess.Process) -> bool:
        if worker.returncode is not None:
            raise Failed(f"The ledger's worker ended with {worker.returncode}: {self.log}")
        return self.log.count("worker is ready") >= self._workers

    async def _command(self, *arguments: str) -> None:
        ran = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "eventmesh", *arguments),
            cwd=self._folder,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await ran.communicate()
        if ran.returncode:
            raise Failed(f"eventmesh {' '.join(arguments)} failed: {out.decode()}")


@dataclass
class Shop:
    """Publishes so many events, of so many customers in turn, at so many a second."""

    messages: int
    customers: int
    rate: float
    published: int = 0
    second_kill: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self, settings: Settings) -> AsyncIterator[None]:
        """With its outbox relayed by a worker in this process."""
        stop = asyncio.Event()
        clock = SystemClock()
        async with open_transport(settings.broker_url, clock, settings.transport_options) as broker:
            worker = Worker([shop], broker, settings, clock)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.run(stop))
                try:
                    yield
                finally:
                    stop.set()

    async def publish_all(self) -> None:
        """Return once all are in the outbox."""
        for first in range(0, self.messages, BATCH):
            due = time.monotonic() + self._interval()
            async with shop.transaction() as transaction:
                for number in range(first, min(first + BATCH, self.messages)):
                    customer, count = number % self.customers, number // self.customers
                    transaction.publish(Sold(customer=f"customer-{customer}", number=count))
            self.published = min(first + BATCH, self.messages)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    def _interval(self) -> float:
        """Seconds from one batch to the next: longer while a slow machine has not yet brought back
        the first node, so that the second is killed under load too."""
        waits = self.published >= self.messages * SECOND_KILL and not self.second_kill.is_set()
        return BATCH / self.rate * (SLOWER if waits else 1)


# --- the run ---


@dataclass
class Kill:
    """What became of the killing of one node."""

    node: str
    role: str
    at: float
    effects: int
    published: int
    started_at: float = 0.0
    back_at: float = 0.0


class Container(Protocol):
    """What a node of any cluster has."""

    @property
    def name(self) -> str: ...
    @property
    def container(self) -> str: ...


@dataclass(frozen=True)
class Victims:
    """The two nodes that are killed, each with its role, and when the cluster is whole again."""

    roles: tuple[str, str]
    find: Sequence[Callable[[], Awaitable[Container]]]
    whole: Callable[[], Awaitable[None]]


@dataclass
class Run:
    """One run, and what it has seen."""

    victims: Victims
    shop: Shop
    ledger: Ledger
    down: float
    console: Console
    kills: list[Kill] = field(default_factory=list)

    async def make(self) -> list[Effect]:
        """The effects, once all has come to rest."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.shop.publish_all())
            tasks.create_task(self._kill_twice())
        await self._rest()
        return await self.ledger.effects()

    async def _kill_twice(self) -> None:
        await self._written(FIRST_KILL)
        await self._kill(await self.victims.find[0](), self.victims.roles[0])
        await self._written(SECOND_KILL)
        self.shop.second_kill.set()
        await self._kill(await self.victims.find[1](), self.victims.roles[1])

    async def _kill(self, node: Container, role: str) -> None:
        """Kill this node, leave it down for a while, and return once the cluster is whole."""
        effects = len(await self.ledger.effects())
        await docker("kill", "--signal", "KILL", node.container)
        kill = Kill(node.name, role, time.time(), effects, self.shop.published)
        self.kills.append(kill)
        self._say(f"killed {node.name} ({role}); {effects:,} effects so far")
        await asyncio.sleep(self.down)
        kill.started_at = time.time()
        await docker("start", node.container)
        await self.victims.whole()
        kill.back_at = time.time()
        self._say(f"{node.name} is back, {kill.back_at - kill.at:.1f} s after it was killed")

    async def _written(self, part: float) -> None:
        """Return once this part of all events is written down."""
        wanted = int(self.shop.messages * part)
        await until(
            lambda: self._has(wanted),
            f"{wanted:,} effects",
            self.shop.messages / self.shop.rate + 60,
        )

    async def _has(self, count: int) -> bool:
        return len(await self.ledger.effects()) >= count

    async def _rest(self) -> None:
        """Return once all events are there and, for a while, no more have come; or once nothing
        has come for long."""
        seen, since = -1, time.monotonic()
        while True:
            now = len(await self.ledger.effects())
            if now != seen:
                seen, since = now, time.monotonic()
            patience = QUIET if seen >= self.shop.messages else CLUSTER_PATIENCE
            if time.monotonic() - since > patience:
                return
            await asyncio.sleep(0.1)

    def _say(self, text: str) -> None:
        self.console.print(f"{text}; {self.shop.published:,} events published", highlight=False)


@dataclass(frozen=True)
class Verdict:
    """What the ledger says in the end."""

    messages: int
    effects: int
    lost: int
    doubled: int
    out_of_order: int
    longest_gap: float

    @classmethod
    def on(cls, effects: Sequence[Effect], messages: int) -> Verdict:
        """Of all effects, when so many events were published."""
        firsts = list(dict.fromkeys((effect.customer, effect.number) for effect in effects))
        last: dict[str, int] = {}
        out_of_order = 0
        for customer, number in firsts:
            out_of_order += number < last.get(customer, -1)
            last[customer] = max(number, last.get(customer, -1))
        return cls(
            messages=messages,
            effects=len(effects),
            lost=messages - len(firsts),
            doubled=len(effects) - len(firsts),
            out_of_order=out_of_order,
            longest_gap=longest(pauses(effects)),
        )


def pauses(
    effects: Sequence[Effect], since: float = 0.0, until_: float = float("inf")
) -> list[tuple[float, float]]:
    """How long it took from one effect to the next, and when that was over, of those that touch
    this span of time."""
    times = sorted(effect.at for effect in effects)
    return [
        (later - earlier, later)
        for earlier, later in pairwise(times)
        if since <= later and earlier <= until_
    ]


def longest(found: Sequence[tuple[float, float]]) -> float:
    return max((length for length, _ in found), default=0.0)


def recovery(effects: Sequence[Effect], kill: Kill) -> float:
    """Seconds after the kill from which on effects came without a noticeable pause, while the
    node was down."""
    found = pauses(effects, kill.at, kill.started_at)
    return max((end - kill.at for length, end in found if length > NOTICEABLE), default=0.0)


def driver_of(database_url: str) -> str:
    """The URL with the driver by which SQLAlchemy opens it here."""
    for plain, driven in (("sqlite:", "sqlite+aiosqlite:"), ("postgresql:", "postgresql+asyncpg:")):
        if database_url.startswith(plain):
            return driven + database_url.removeprefix(plain)
    return database_url


def report(console: Console, verdict: Verdict, effects: Sequence[Effect], run: Run) -> None:
    """Print the tables."""
    table = Table(title="a cluster of three, two nodes killed in turn")
    names = ("messages", "effects", "lost", "doubled", "out of order", "longest gap")
    for name in names:
        table.add_column(name, justify="right")
    figures = (verdict.messages, verdict.effects, verdict.lost, verdict.doubled)
    table.add_row(
        *(f"{figure:,}" for figure in (*figures, verdict.out_of_order)),
        f"{verdict.longest_gap:.2f} s",
    )
    console.print(table)
    kills = Table(title="each kill")
    for name in ("node", "role"):
        kills.add_column(name)
    for name in ("effects before", "gap while down", "recovered after", "gap while it returns"):
        kills.add_column(name, justify="right")
    for kill in run.kills:
        kills.add_row(
            *(kill.node, kill.role, f"{kill.effects:,}"),
            f"{longest(pauses(effects, kill.at, kill.started_at)):.2f} s",
            f"{recovery(effects, kill):.2f} s",
            f"{longest(pauses(effects, kill.started_at, kill.back_at)):.2f} s",
        )
    console.print(kills)
    waits = run.ledger.log.count('"subscription waiting for broker"')
    console.print(f"The ledger's worker lost its broker {waits} time(s).", highlight=False)


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group, and in the groups in it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that the user in a container may enter, removed on leaving."""
    with tempfile.TemporaryDirectory(prefix="eventmesh-cluster-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@dataclass(frozen=True)
class Plan:
    """What is run."""

    console: Console
    shop: Shop
    image: str
    database_url: str
    down: float
    workers: int
    ordered: bool

    async def run_on(self, broker: str, url: str, folder: Path, victims: Victims) -> Verdict:
        """The whole run on a cluster that is there, in this folder."""
        order = "in order" if self.ordered else "without an order"
        self.console.print(
            f"{broker} ({self.image}); {self.shop.messages:,} events of {self.shop.customers:,} "
            f"keys at {self.shop.rate:,.0f} a second; {self.workers} worker(s), {order}.",
            highlight=False,
        )
        database_url = self.database_url or f"sqlite:///{folder}/ledger.db"
        settings = Settings(broker_url=url, database_urls={"shop": f"sqlite:///{folder}/shop.db"})
        ledger = Ledger(folder, url, database_url, self.workers, ordered=self.ordered)
        async with ledger.running(), self.shop.running(settings):
            run = Run(victims, self.shop, ledger, self.down, self.console)
            effects = await run.make()
            verdict = Verdict.on(effects, self.shop.messages)
            report(self.console, verdict, effects, run)
            return verdict


async def run_on_rabbitmq(plan: Plan) -> Verdict:
    """The whole run, on a cluster of its own."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        cluster = await stack.enter_async_context(running_cluster(plan.image, folder))
        version = (await cluster.nodes[0].control("version")).strip()
        queue = PARTITION if plan.ordered else QUEUE
        victims = Victims(
            (
                f"leads {'a partition' if plan.ordered else 'the queue'}",
                "a worker consumes from it",
            ),
            [partial(cluster.leader, queue), partial(cluster.consumed_from, queue)],
            cluster.whole,
        )
        return await plan.run_on(f"RabbitMQ {version}, three nodes", cluster.url, folder, victims)


def main(
    messages: Annotated[int, typer.Option(min=1_000, help="Events published.")] = 20_000,
    rate: Annotated[float, typer.Option(min=1, help="Events published a second.")] = 400,
    keys: Annotated[int, typer.Option(min=1, help="Customers they are about, in turn.")] = 200,
    down: Annotated[float, typer.Option(min=0, help="Seconds a killed node stays down.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the ledger's worker.")] = 1,
    image: Annotated[
        str, typer.Option(envvar="EVENTMESH_TEST_RABBITMQ_IMAGE", help="Of RabbitMQ 4.")
    ] = "rabbitmq:4",
    database_url: Annotated[
        str, typer.Option(help="An empty database for the ledger; else a SQLite file.")
    ] = "",
    patience: Annotated[float, typer.Option(min=1, help="Seconds the whole may take.")] = 600,
    ordered: Annotated[bool, typer.Option("--ordered", help="Handle in order.")] = False,
) -> None:
    """Kill nodes of a RabbitMQ cluster under load, and count what the subscriber has in the end."""
    plan = Plan(
        new_console(), Shop(messages, keys, rate), image, database_url, down, workers, ordered
    )
    carry_out(plan, run_on_rabbitmq, patience)


def new_console() -> Console:
    return Console(width=None if Console().is_terminal else 110)


def carry_out(plan: Plan, run: Callable[[Plan], Awaitable[Verdict]], patience: float) -> None:
    """Make this run; Exit with 1 unless each event took effect once, and in order."""
    console = plan.console
    configure_logs(Settings(log_level="error"))

    async def bounded() -> Verdict:
        async with asyncio.timeout(patience):
            return await run(plan)

    verdict = None
    try:
        verdict = asyncio.run(bounded())
    except* TimeoutError:
        console.print(f"FAILED: not done within {patience:.0f} s.")
    except* (Failed, EventMeshError) as failures:
        for failure in leaves(failures):
            console.print(f"FAILED: {failure}", highlight=False, markup=False)
    if verdict is None:
        raise typer.Exit(1)
    needs_order = plan.ordered or plan.workers == 1
    if verdict.lost or verdict.doubled or (needs_order and verdict.out_of_order):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
