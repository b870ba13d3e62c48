"""What tracing costs: `python -m benchmarks.tracing`.

A lane of a subscription takes batches of commands: it receives them, handles them in groups with a
row for each in PostgreSQL and an event that the handler returns, settles them, and its relay
publishes the events. There is one such lane for each variant, all in one process, and they take
turns batch by batch, so that whatever else the machine does slows them down alike. The exporter
drops the spans: what it takes is not a cost of tracing. With `--broker memory`, neither is what a
client of a broker takes, so that the ratios are higher than those of any worker. Garbage is looked
for as seldom as in a worker, because spans that wait for their export make each look take longer.

The figures are the CPU time of the process for each command, and its time by the clock, in which
the database and the broker do their part, as the medians of all batches. Sampling
decides on whole batches, so that of ten batches one is recorded, or none, or three: the cost of a
ratio is that of recording nothing, and this part of what recording everything costs more.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Annotated, Any, Literal, NamedTuple

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
from eventmesh.cli.garbage import YOUNG
from eventmesh.observability.logs import configure_logs
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.runtime.consuming.batch import BatchRunner
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.runtime.vitals import SubscriptionVitals
from eventmesh.testing.servers import fresh_database, serve
from eventmesh.tracing.port import NO_TRACING
from eventmesh.transports.base import publish_or_raise
from eventmesh.transports.factory import open_transport
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


class Took(NamedTuple):
    """Microseconds for each command."""

    cpu: float
    clock: float


class Lane:
    """A lane of its own service, with its own database, and the relay of that."""

    def __init__(self, configure: Configure, url: str, broker: str) -> None:
        self.service = service = Service("bench", metadata=Base.metadata)
        self._settings = Settings(
            broker_url=broker,
            broker_prefix=f"bench{secrets.token_hex(4)}",
            database_urls={"bench": url},
            group_time=1_000.0,
        )
        service.configure(self._settings)
        configure(service)

        @service.subscriber(Place)
        async def place(command: Place, tx: Transaction) -> Placed:
            tx.session.add(Order(order=command.order))
            return Placed(order=command.order, cents=command.cents)

        service.publisher(Place)
        handler = service.handlers["bench.place"]
        self._clock = service.clock
        self._subscription = handler.subscription
        self._tracing = handler.traced_by(service.tracing)
        vitals = SubscriptionVitals("bench", handler.subscription, self._clock)
        self._runner = BatchRunner(service, handler, vitals, tracing=self._tracing)
        self._stack = AsyncExitStack()

    async def open(self) -> None:
        self._transport = await self._stack.enter_async_context(
            open_transport(self._settings.broker_url, self._clock, self._settings.transport_options)
        )
        await self._transport.declare([self._subscription])
        self.service.tracing.over(self._transport)
        consuming = self._transport.consume(self._subscription, prefetch=2 * AT_ONCE)
        self._consumer = await self._stack.enter_async_context(consuming)
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

    async def close(self) -> None:
        await self._stack.aclose()
        await self.service.close()

    async def batch(self) -> Took:
        """Take a batch all the way."""
        tracing, commands = self.service.tracing, []
        for number in range(AT_ONCE):
            command = Place(order=str(number), cents=number)
            envelope = seal(command, source="bench", clock=self._clock)
            commands.append(tracing.created(envelope))
        await publish_or_raise(self._transport, commands)
        began, began_at, done = time.process_time(), time.perf_counter(), 0
        while done < AT_ONCE:
            with self._tracing.receiving() as received:
                deliveries = await self._consumer.receive(self._runner.size)
                received(deliveries)
            settlements = await self._runner.run(deliveries)
            with self._tracing.settling(settlements):
                await self._consumer.settle(settlements)
                done += len(settlements)
        while (await self._relay.round()).confirmed:
            pass
        cpu, clock = time.process_time() - began, time.perf_counter() - began_at
        await self._transport.purge_unrouted("bench.placed", [self._subscription])
        return Took(cpu / AT_ONCE * 1e6, clock / AT_ONCE * 1e6)


async def figures(postgres: Any, broker: str, batches: int) -> dict[str, list[Took]]:
    """The figures of all batches, by variant."""
    found: dict[str, list[Took]] = {name: [] for name in VARIANTS}
    async with AsyncExitStack() as stack:
        lanes: dict[str, Lane] = {}
        for name, configure in VARIANTS.items():
            url = await stack.enter_async_context(fresh_database(postgres))
            lanes[name] = lane = Lane(configure, url, broker)
            stack.push_async_callback(lane.close)
            await lane.open()
            for _ in range(5):  # its groups grow
                await lane.batch()
        settle_memory()
        gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
        for _ in range(batches):
            for name in random.sample(list(lanes), len(lanes)):  # the one before may matter
                found[name].append(await lanes[name].batch())
    return found


def main(
    batches: Annotated[int, typer.Option(min=1, help="Batches of each variant.")] = 100,
    broker: Annotated[Literal["memory", "redis", "rabbitmq"], typer.Option()] = "redis",
) -> None:
    """Compare the CPU time of a message's way with and without tracing."""
    configure_logs(Settings(log_level="warning"))
    with ExitStack() as servers:
        postgres = servers.enter_context(serve("postgres"))
        url = "memory://"
        if broker != "memory":
            url = servers.enter_context(serve(broker)).url
        found = asyncio.run(figures(postgres, url, batches))
    medians = {
        name: Took(*(statistics.median(column) for column in zip(*each, strict=True)))
        for name, each in found.items()
    }
    base = medians[NOT_INSTALLED]
    for name, nothing in (("", NOT_SAMPLED), (", metrics", f"{NOT_SAMPLED}, metrics")):
        recorded = [
            SAMPLED * (everything - left_out)
            for everything, left_out in zip(medians[SAMPLED_ALL], medians[NOT_SAMPLED], strict=True)
        ]
        both = (figure + more for figure, more in zip(medians[nothing], recorded, strict=True))
        medians[f"{SAMPLED:.0%} sampled{name}"] = Took(*both)
    table = Table("variant", "CPU: µs a command", "ratio", "clock: µs a command", "ratio")
    for name, took in medians.items():
        table.add_row(
            name,
            f"{took.cpu:.0f}",
            f"{took.cpu / base.cpu:.3f}",
            f"{took.clock:.0f}",
            f"{took.clock / base.clock:.3f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
