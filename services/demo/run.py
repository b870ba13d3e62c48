"""The demo itself: place the orders, watch them end, kill workers if asked, and check."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from eventmesh.cli.audit import table as sheet_of
from eventmesh.cli.terminal import console as wide_console
from eventmesh.clock import Clock, SystemClock
from eventmesh.errors import EventMeshError
from eventmesh.operations.audit import BalanceSheet, audit
from eventmesh.operations.reach import Reach
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.private_files import make_private_folder
from eventmesh.redact import redact
from eventmesh.runtime.declaring.discovery import load_services
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.base import Subscription, Transport
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope, seal
from services import drill
from services.demo.fleet import Fleet
from services.demo.ledger import SERVICES, Ledger, LedgerReader
from services.demo.progress import ProgressLines
from services.demo.purchases import commands, read_purchases
from services.demo.stuck_detector import StuckDetector
from services.demo.verdict import Verdict, endings, judge, latencies, percentile
from services.orders import approvals
from services.orders.handlers import service as orders_service

_BATCH = 100
_MOST_OPEN = 20  # orders with --slow, where steps would time out in a long queue
_REJECTED_FROM_CENTS = 150_00
_LOOK_EVERY = 0.2  # seconds
_KILL_EVERY = 1.0  # seconds
_NO_PROGRESS = 60.0  # seconds without a handled message, after which the rest is stuck
_DRAIN = 30.0  # seconds


@dataclass(frozen=True)
class Report:
    """The result of a demo run."""

    verdict: Verdict
    ledger: Ledger
    seconds: float
    messages: int
    kills: int
    sheet: BalanceSheet


class Demo:
    """One run, with a folder for its logs and, by default, its broker and databases. With `slow`,
    services do not answer for a while now and then, and fewer orders are placed at a time."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        clock: Clock,
        console: Console,
        *,
        slow: bool = False,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._clock = clock
        self._console = console
        self._slow = slow
        self._services = load_services(SERVICES, Path.cwd())

    async def run(self, purchases: int, *, attach: bool, kill: bool) -> Report:
        """Replay this many purchases. EventMeshError if a worker fails."""
        orders = list(commands(read_purchases(purchases), self._folder.name[-6:], self._clock))
        placed = [order.order_id for order in orders]
        async with self._opened() as (transport, databases):
            dead_before = await self._dead_letters(transport)
            reader = LedgerReader(databases, placed)
            handled_before = await reader.handled()
            fleet = Fleet(() if attach else SERVICES, self._environment(), self._folder)
            began_at = self._clock.monotonic()
            try:
                await fleet.start()
                envelopes = [seal(order, source="demo", clock=self._clock) for order in orders]
                async with (
                    _beside(self._place(transport, reader, envelopes)),
                    _beside(self._decide()),
                    _killing(fleet, self._clock) if kill else contextlib.nullcontext(),
                ):
                    await self._watch(reader, fleet, purchases)
                took = self._clock.monotonic() - began_at
                await self._settle(reader, fleet, transport)
                self._raise_for_failures(fleet, await fleet.stop(_DRAIN))
            finally:
                fleet.abort()
            ledger = replace(
                await reader.read(),
                dead_letters={
                    name: count - dead_before.get(name, 0)
                    for name, count in (await self._dead_letters(transport)).items()
                },
            )
            handled = ledger.handled - handled_before
            async with Reach(self._services, self._settings, self._clock, transport) as reach:
                sheet = await audit(reach)
        return Report(judge(ledger), ledger, took, handled, fleet.kills, sheet)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Transport, Mapping[str, Database]]]:
        """The broker with all subscriptions declared, and the four databases with their tables."""
        async with AsyncExitStack() as stack:
            databases = {}
            orders_service.configure(self._settings)
            stack.push_async_callback(orders_service.close)
            for service in self._services:
                url = self._settings.database_url(service.name)
                database = Database(url, service=service.name)
                stack.push_async_callback(database.close)
                await migration.upgrade(database, service.metadata)
                databases[service.name] = database
            transport = await stack.enter_async_context(
                open_transport(
                    self._settings.broker_url, self._clock, self._settings.transport_options
                )
            )
            await transport.declare(self._subscriptions())
            yield transport, databases

    def _environment(self) -> dict[str, str]:
        """Variables that give the workers the same broker, databases and timeouts."""
        return {
            "EVENTMESH_BROKER_URL": self._settings.broker_url,
            "EVENTMESH_VISIBILITY_TIMEOUT": f"{self._settings.visibility_timeout}",
            "EVENTMESH_LEASE_TIME": f"{self._settings.lease_time}",
            "EVENTMESH_LOG_LEVEL": "warning",
            "EVENTMESH_LOG_FORMAT": "json",
            drill.VARIABLE: "1" if self._slow else "",
        } | {
            f"EVENTMESH_{name.upper()}_DATABASE_URL": self._settings.database_url(name)
            for name in SERVICES
        }

    async def _place(
        self, transport: Transport, reader: LedgerReader, envelopes: Sequence[Envelope]
    ) -> None:
        """Place all orders at once; with `slow`, only so many that few of them wait in a queue."""
        placed, batch = 0, _MOST_OPEN // 4 if self._slow else _BATCH
        while placed < len(envelopes):
            if self._slow and placed - await reader.ended() > _MOST_OPEN - batch:
                await self._clock.sleep(_LOOK_EVERY / 4)
                continue
            await transport.publish(envelopes[placed : placed + batch])
            placed += batch

    async def _decide(self) -> None:
        """Approve large orders, and reject very large ones, as a person would."""
        while True:
            for order_id, cents in await approvals.undecided():
                await approvals.decide(
                    order_id,
                    approve=cents < _REJECTED_FROM_CENTS,
                    by="demo",
                    reason="too much for one order",
                )
            await self._clock.sleep(_LOOK_EVERY)

    async def _watch(self, reader: LedgerReader, fleet: Fleet, total: int) -> None:
        """Show how many orders have ended, until all have or nothing progresses."""
        columns = (
            TextColumn("orders ended"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        lines = ProgressLines(total)
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("", total=total)
            # Most orders finish one step before any takes the next, so none ends for a long time.
            seen, detector = 0, StuckDetector(self._clock, _NO_PROGRESS)
            while seen < total and not await detector.is_stuck(reader.handled):
                self._raise_for_failures(fleet, fleet.crashed())
                await self._clock.sleep(_LOOK_EVERY)
                ended = await reader.ended()
                if ended > seen:
                    seen = ended
                    detector.progressed()
                progress.update(task, completed=ended)
                if not self._console.is_terminal and (line := lines.line(ended)):
                    print(line, flush=True)  # noqa: T201  # plain, so that a log does not wrap it

    async def _settle(self, reader: LedgerReader, fleet: Fleet, transport: Transport) -> None:
        """Wait for the effects that follow from ended orders, as long as they progress."""
        least, detector = (
            await self._pending(reader, transport),
            StuckDetector(self._clock, _NO_PROGRESS / 2),
        )
        while least and not await detector.is_stuck(reader.handled):
            self._raise_for_failures(fleet, fleet.crashed())
            await self._clock.sleep(_LOOK_EVERY)
            pending = await self._pending(reader, transport)
            if pending < least:
                least = pending
                detector.progressed()

    async def _pending(self, reader: LedgerReader, transport: Transport) -> int:
        """How many effects are outstanding; with `slow`, also the commands that are answered too
        late, which are only on the broker. Read first, because what it handles goes on from there
        into a database."""
        waiting = 0
        for subscription in self._subscriptions() if self._slow else ():
            stats = await transport.stats(subscription)
            waiting += stats.ready + (stats.delayed or 0) + (stats.in_flight or 0)
        return waiting + await reader.pending_effects()

    def _subscriptions(self) -> list[Subscription]:
        return [s for service in self._services for s in _subscriptions(service)]

    def _raise_for_failures(self, fleet: Fleet, codes: Mapping[str, int]) -> None:
        for service, code in codes.items():
            lines = fleet.log_of(service).read_text(encoding="utf-8").splitlines()[-3:]
            raise EventMeshError(
                f"The worker of {service} exited with code {code}. The last lines of its log, "
                f"{fleet.log_of(service)}: {' / '.join(lines)}"
            )

    async def _dead_letters(self, transport: Transport) -> dict[str, int]:
        return {
            subscription.name: (await transport.stats(subscription)).dead
            for subscription in self._subscriptions()
        }


async def run_demo(
    settings: Settings,
    purchases: int,
    *,
    attach: bool,
    kill: bool,
    slow: bool = False,
    dashboard: bool = False,
) -> bool:
    """Run the demo and print the result; returns whether every check passed. With `dashboard`, its
    pages are served meanwhile, and afterwards until the demo is interrupted."""
    console, clock = Console(), SystemClock()
    run = clock.new_id()
    folder = Path(".eventmesh") / f"demo-{run[-12:]}"
    make_private_folder(folder)
    if not attach:  # services that run already have a broker and databases
        settings = embedded_by_default(settings, folder)
    console.print(
        f"{purchases} purchases through four {'running services' if attach else 'worker processes'}"
        f" on {redact(settings.broker_url)}"
        + (", a random one killed every second" if kill else "")
        + (", some of them slow" if slow else ""),
        soft_wrap=True,
    )
    async with AsyncExitStack() as stack:
        if dashboard:
            url = await stack.enter_async_context(_dashboard(settings))
            console.print(f"Watch the shop at {url}", soft_wrap=True)
        demo = Demo(settings, folder, clock, console, slow=slow)
        report = await demo.run(purchases, attach=attach, kill=kill)
        console.print(_table(report))
        for problem in report.verdict.problems:
            console.print(f"  {problem}", style="red")
        wide_console().print(sheet_of(report.sheet))
        print(report.verdict, flush=True)  # noqa: T201  # scripts read it: not wrapped nor styled
        if dashboard:
            console.print("The pages are there until Ctrl-C.")
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    # Services that run already may have lost something before.
    ok = report.verdict.ok and (attach or not report.sheet.differences)
    if ok:
        shutil.rmtree(folder)
    else:
        console.print(f"  logs and databases are kept in {folder}")
    return ok


def _dashboard(settings: Settings) -> AbstractAsyncContextManager[str]:
    """The shop's pages, served by this process; gives their address."""
    from eventmesh.dashboard import Dashboard  # needs an extra
    from services.demo.page import serving

    services = load_services(SERVICES, Path.cwd())
    for service in services:
        service.configure(settings)
    return serving(Dashboard(services, settings=settings))


def embedded_by_default(settings: Settings, folder: Path) -> Settings:
    """The settings with SQLite files in `folder` for whatever is not set, and shorter timeouts."""
    given = settings.model_fields_set
    changes: dict[str, object] = {
        "database_urls": {
            name: settings.given_database_url(name) or f"sqlite:///{folder}/{name}.db"
            for name in SERVICES
        }
    }
    if "broker_url" not in given:
        changes["broker_url"] = f"sqlite:///{folder}/broker.db"
    if "visibility_timeout" not in given:
        changes["visibility_timeout"] = 3.0
    if "lease_time" not in given:
        changes["lease_time"] = 2.0
    return settings.model_copy(update=changes)


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run this while the body runs; raises what it has raised."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def _killing(fleet: Fleet, clock: Clock) -> AsyncIterator[None]:
    """Kill a random worker every second while the body runs; on leaving, all are running."""
    stop = asyncio.Event()

    async def kill() -> None:
        while not stop.is_set():
            await clock.sleep(_KILL_EVERY)
            await fleet.kill_one()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kill())
        try:
            yield
        finally:
            stop.set()


def _table(report: Report) -> Table:
    table = Table(title="How the orders ended")
    table.add_column("what")
    table.add_column("how many", justify="right")
    for ending, count in sorted(endings(report.ledger).items()):
        table.add_row(ending, f"{count:,}")
    table.add_section()
    for ending, count in sorted(report.ledger.saga_endings.items()):
        table.add_row(f"saga {ending}", f"{count:,}")
    if report.ledger.late_answers:
        table.add_row("late answers undone", f"{report.ledger.late_answers:,}")
    table.add_section()
    table.add_row("messages handled", f"{report.messages:,}")
    table.add_row("messages/s", f"{report.messages / report.seconds:,.0f}")
    times = latencies(report.ledger)
    table.add_row("placed to closed, p50", f"{percentile(times, 50):.2f} s")
    table.add_row("placed to closed, p99", f"{percentile(times, 99):.2f} s")
    if report.kills:
        table.add_row("workers killed", f"{report.kills}")
    return table


def _subscriptions(service: Service) -> list[Subscription]:
    return [handler.subscription for handler in service.handlers.values()]
