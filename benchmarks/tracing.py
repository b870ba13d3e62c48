"""What tracing costs: `python -m benchmarks.tracing`.

A lane of a subscription takes batches of commands: it receives them, handles them in groups with a
row for each in PostgreSQL and an event that the handler returns, settles them, and its relay
publishes the events. There is one such lane for each variant, all in one process, and they take
turns batch by batch, so that whatever else the machine does slows them down alike. The broker is
in memory, and the exporter drops the spans: what these take is not a cost of tracing.

A figure is the CPU time of the process for each command, as the median of all batches. Sampling
decides on whole batches, so that of ten batches one is recorded, or none, or three: the cost of a
ratio is that of recording nothing, and this part of what recording everything costs more.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any

import typer
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.measure import settle_memory
from eventmesh import Command, Event, Service, Transaction
from eventmesh.observability.logs import configure_logs
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.testing.servers import fresh_database, serve
from eventmesh.tracing.port import NO_TRACING
from eventmesh.transports.base import Delivery
from eventmesh.transports.memory import MemoryTransport
from eventmesh.wire.envelope import seal

AT_ONCE = 100
"""Commands of a batch."""

SAMPLED = 0.1

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
        tracers = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)), span_limits=SpanLimits(max_links=1_000)
        )
        tracers.add_span_processor(BatchSpanProcessor(Dropping()))
        meters = MeterProvider(metric_readers=[InMemoryMetricReader()]) if metrics else None
        service.trace_with(tracer=tracers, meter=meters)

    return configure


NOT_INSTALLED, NOT_SAMPLED, SAMPLED_ALL = "not installed", "nothing sampled", "everything sampled"
VARIANTS: dict[str, Configure] = {
    NOT_INSTALLED: not_installed,
    "no provider": not_configured,
    NOT_SAMPLED: sampled(0.0),
    SAMPLED_ALL: sampled(1.0),
    "nothing sampled, metrics": sampled(0.0, metrics=True),
}


class Lane:
    """A lane of its own service, with its own database, and the relay of that."""

    def __init__(self, configure: Configure, url: str) -> None:
        self.service = service = Service("bench", metadata=Base.metadata)
        service.configure(
            Settings(broker_url="memory://", database_urls={"bench": url}, group_time=1_000.0)
        )
        configure(service)

        @service.subscriber(Place)
        async def place(command: Place, tx: Transaction) -> Placed:
            tx.session.add(Order(order=command.order))
            return Placed(order=command.order, cents=command.cents)

        service.publisher(Place)
        handler = service.handlers["bench.place"]
        self._clock = service.clock
        self._tracing = handler.traced_by(service.tracing)
        vitals = SubscriptionVitals("bench", handler.subscription, self._clock)
        self._runner = BatchRunner(service, handler, vitals, tracing=self._tracing)
        self._transport = MemoryTransport(self._clock)

    async def open(self) -> None:
        database = Database(self.service.settings.database_url("bench"), service="bench")
        await migration.upgrade(database, Base.metadata)
        await database.close()
        self._relay = Relay(
            "bench",
            await self.service.database(),
            self._transport,
            self._clock,
            3600.0,
            tracing=self.service.tracing,
        )

    async def batch(self) -> float:
        """The CPU time of a batch, in microseconds for each command."""
        tracing, commands = self.service.tracing, []
        for number in range(AT_ONCE):
            command = Place(order=str(number), cents=number)
            envelope = seal(command, source="bench", clock=self._clock)
            commands.append(Delivery(tracing.created(envelope)))
        began, done = time.process_time(), 0
        while done < AT_ONCE:
            with self._tracing.receiving() as received:
                deliveries = commands[done : done + self._runner.size]
                received(deliveries)
            settlements = await self._runner.run(deliveries)
            with self._tracing.settling(settlements):
                done += len(settlements)
        while (await self._relay.round()).confirmed:
            pass
        took = time.process_time() - began
        self._transport.broker.unrouted.clear()
        return took / AT_ONCE * 1e6


async def figures(postgres: Any, batches: int) -> dict[str, list[float]]:
    """The figures of all batches, by variant."""
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    async with AsyncExitStack() as stack:
        lanes: dict[str, Lane] = {}
        for name, configure in VARIANTS.items():
            url = await stack.enter_async_context(fresh_database(postgres))
            lanes[name] = lane = Lane(configure, url)
            stack.push_async_callback(lane.service.close)
            await lane.open()
            for _ in range(5):  # its groups grow
                await lane.batch()
        settle_memory()
        for _ in range(batches):
            for name in random.sample(list(lanes), len(lanes)):  # the one before may matter
                found[name].append(await lanes[name].batch())
    return found


def main(
    batches: Annotated[int, typer.Option(min=1, help="Batches of each variant.")] = 100,
) -> None:
    """Compare the CPU time of a message's way with and without tracing."""
    configure_logs(Settings(log_level="warning"))
    with serve("postgres") as postgres:
        found = asyncio.run(figures(postgres, batches))
    medians = {name: statistics.median(each) for name, each in found.items()}
    nothing, everything = medians[NOT_SAMPLED], medians[SAMPLED_ALL]
    medians[f"{SAMPLED:.0%} sampled"] = nothing + SAMPLED * (everything - nothing)
    table = Table("variant", "µs a command", "ratio")
    for name, figure in medians.items():
        table.add_row(name, f"{figure:.0f}", f"{figure / medians[NOT_INSTALLED]:.3f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
