"""What tracing costs: `python -m benchmarks.tracing`.

One process takes messages all the way, again and again: it publishes commands through the outbox of
PostgreSQL, relays them to Redis, receives and handles them in groups, with a row for each, and
relays the events that the handlers return. What differs is who is told of it, and these take turns.
Their exporter drops the spans, since where they go is the application's business. A figure is the
CPU time of the process for each command: the median of all runs, and the least, which other
programs on the machine disturb least. Ratios are to the first variant.
"""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.measure import RUN_TIMEOUT, settle_memory
from eventmesh import Command, Event, Service, Transaction
from eventmesh.clock import SystemClock
from eventmesh.observability.logs import configure_logs
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import fresh_database, serve
from eventmesh.tracing.port import NO_TRACING
from eventmesh.transports.factory import open_transport

AT_ONCE = 100
"""Commands that one transaction publishes."""

Configure = Callable[[Service], None]


class Place(Command, name="bench.place", version=1, key="order"):
    order: str
    cents: int


class Placed(Event, name="bench.placed", version=1, key="order"):
    order: str
    cents: int


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str]


class Dropping(SpanExporter):
    """Exports to nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None: ...


def not_installed(service: Service) -> None:
    """As without the extra."""
    service._tracing = NO_TRACING


def not_configured(service: Service) -> None:
    """Installed, and no provider is configured."""


def sampled(ratio: float, *, metrics: bool = False) -> Configure:
    """So many of a hundred traces are recorded; with metrics of everything."""

    def configure(service: Service) -> None:
        tracers = TracerProvider(sampler=ParentBased(TraceIdRatioBased(ratio)))
        tracers.add_span_processor(BatchSpanProcessor(Dropping(), max_queue_size=100_000))
        meters = MeterProvider(metric_readers=[InMemoryMetricReader()]) if metrics else None
        service.trace_with(tracer=tracers, meter=meters)

    return configure


VARIANTS: dict[str, Configure] = {
    "not installed": not_installed,
    "no provider": not_configured,
    "none sampled": sampled(0.0),
    "10 % sampled": sampled(0.1),
    "10 % sampled, and metrics": sampled(0.1, metrics=True),
    "all sampled": sampled(1.0),
}


async def seconds(
    configure: Configure, postgres: Any, redis: Any, messages: int, parents: str, effect: bool
) -> float:
    """The CPU time of all commands, from publishing them to relaying what came of them."""
    heard = asyncio.Event()
    count = 0
    service = Service("bench", metadata=Base.metadata)
    service.publisher(Place)

    @service.subscriber(Place)
    async def place(command: Place, tx: Transaction) -> Placed:
        if effect:
            tx.session.add(Order(order=command.order))
        return Placed(order=command.order, cents=command.cents)

    @service.subscriber(Placed)
    async def hear(event: Placed) -> None:
        nonlocal count
        count += 1
        if count == messages:
            heard.set()

    async with fresh_database(postgres) as url:
        settings = Settings(
            broker_url=redis.url,
            broker_prefix=f"bench-{uuid.uuid4().hex[:12]}",
            database_urls={"bench": url},
            trace_parents=parents,
            log_level="warning",
        )
        database = Database(url, service="bench")
        await migration.upgrade(database, Base.metadata)
        await database.close()
        service.configure(settings)
        configure(service)
        clock, stopping = SystemClock(), asyncio.Event()
        opening = open_transport(settings.broker_url, clock, settings.transport_options)
        async with asyncio.timeout(RUN_TIMEOUT), opening as transport, asyncio.TaskGroup() as tasks:
            worker = Worker([service], transport, settings, clock)
            tasks.create_task(worker.run(stopping))
            await worker.ready.wait()
            settle_memory()
            began = time.process_time()
            for first in range(0, messages, AT_ONCE):
                async with service.transaction() as tx:
                    for number in range(first, first + AT_ONCE):
                        tx.send(Place(order=str(number), cents=number))
            await heard.wait()
            took = time.process_time() - began
            stopping.set()
    return took


def main(
    messages: Annotated[int, typer.Option(min=AT_ONCE, help="Commands of each run.")] = 2_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 7,
    parents: Annotated[str, typer.Option(help="EVENTMESH_TRACE_PARENTS")] = "none",
    effect: Annotated[bool, typer.Option(help="Whether the handler stores a row.")] = True,
    only: Annotated[list[str] | None, typer.Option(help="Variants to compare.")] = None,
) -> None:
    """Compare the CPU time of a message's way with and without tracing."""
    configure_logs(Settings(log_level="warning"))
    variants = {name: VARIANTS[name] for name in only or VARIANTS}
    found: dict[str, list[float]] = {name: [] for name in variants}
    with serve("postgres") as postgres, serve("redis") as redis:
        for run in range(repetitions + 1):
            for name, configure in variants.items():
                took = asyncio.run(seconds(configure, postgres, redis, messages, parents, effect))
                if run:  # the first is the warm-up
                    found[name].append(took / messages * 1e6)
    table = Table("variant", "median, µs", "ratio", "least, µs", "ratio")
    base = next(iter(found.values()))
    for name, figures in found.items():
        cells = [name]
        for middle in (statistics.median, min):
            mine, theirs = middle(figures), middle(base)
            cells += [f"{mine:.0f}", f"{mine / theirs:.3f}"]
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
