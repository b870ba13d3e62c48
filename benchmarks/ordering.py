"""What order within a key costs: an ordered subscription against the same one without order, with
one worker at its default settings: `python -m benchmarks.ordering`.

A backlog of messages of a thousand keys is worked off, with and without a database. The two take
turns within each repetition, and every message is counted. The exit code is 1 when messages of a
key came in another order, or twice.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.effects_programs import FOREVER, migrated
from benchmarks.effects_tables import Base, OrderRecorded
from benchmarks.measure import BATCH, RUN_TIMEOUT, Broken, Mark, Rate, settle_memory
from benchmarks.messages import OrderPlaced, in_batches, make_envelopes
from benchmarks.report import Row, facts, print_table, rate_rows, write_json
from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.observability.logs import configure_logs
from eventmesh.persistence import leases
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, ServerMissing, fresh_database, serve
from eventmesh.transports.base import publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope

KEYS = 1_000
WARM_UP = 1_000
GOAL = "0.85"
BROKERS = ("sqlite", "redis", "rabbitmq")


class Progress:
    """The messages that took effect, by key, and when the warm-up and all of them had."""

    def __init__(self, total: int) -> None:
        self.done = asyncio.Event()
        self.by_key: dict[str, list[int]] = defaultdict(list)
        self._total = total
        self._count = 0
        self._marks: dict[int, Mark] = {}

    def add(self, event: OrderPlaced, key: str) -> None:
        self.by_key[key].append(int(event.email.removeprefix("customer")[:8]))
        self._count += 1
        if self._count in (WARM_UP, self._total):
            self._marks[self._count] = Mark()
            if self._count == self._total:
                self.done.set()

    def rate(self) -> Rate:
        return self._marks[WARM_UP].rate(self._total - WARM_UP, until=self._marks[self._total])

    def check(self, *, is_ordered: bool) -> None:
        """Broken unless each message took effect once and, with an order, in its place."""
        for key, numbers in self.by_key.items():
            if len(set(numbers)) != len(numbers):
                raise Broken(f"messages of {key} took effect twice")
            if is_ordered and numbers != sorted(numbers):
                raise Broken(f"messages of {key} took effect in another order: {numbers}")


def with_keys(envelopes: Sequence[Envelope]) -> list[Envelope]:
    """The same messages, of KEYS keys."""
    return [
        Envelope({**each.attributes, "partitionkey": f"key-{number % KEYS}"}, each.data)
        for number, each in enumerate(envelopes)
    ]


async def rate_of(
    broker_url: str, postgres: Server | None, envelopes: Sequence[Envelope], *, is_ordered: bool
) -> Rate:
    """Messages a second from a backlog, on queues and into a database of its own."""
    if postgres is None:
        return await _run(broker_url, None, envelopes, is_ordered=is_ordered)
    async with fresh_database(postgres) as url:
        return await _run(broker_url, url, envelopes, is_ordered=is_ordered)


async def _run(
    broker_url: str, database_url: str | None, envelopes: Sequence[Envelope], *, is_ordered: bool
) -> Rate:
    progress = Progress(len(envelopes))
    settings = Settings(broker_url=broker_url, broker_prefix=f"b{secrets.token_hex(5)}")
    if database_url is None:
        service = Service("bench")

        @service.subscriber(name="handle", ordered=is_ordered)
        async def take(event: OrderPlaced, envelope: Envelope) -> None:
            progress.add(event, envelope.key or "")
    else:
        service = Service("bench", metadata=Base.metadata)
        settings = settings.model_copy(update={"database_urls": {"bench": database_url}})

        @service.subscriber(name="handle", ordered=is_ordered)
        async def record(event: OrderPlaced, envelope: Envelope, tx: Transaction) -> OrderRecorded:
            progress.add(event, envelope.key or "")
            return OrderRecorded(order_id=event.order_id, total=event.total)

    service.configure(settings)
    clock = SystemClock()
    async with (
        asyncio.timeout(RUN_TIMEOUT),
        nobody_relays(database_url),
        open_transport(broker_url, clock, settings.transport_options) as transport,
    ):
        await transport.declare([service.handlers["bench.handle"].subscription])
        for batch in in_batches(envelopes, BATCH):
            await publish_or_raise(transport, batch)
        settle_memory()
        await Worker([service], transport, settings, clock).run(progress.done)
    progress.check(is_ordered=is_ordered)
    return progress.rate()


@asynccontextmanager
async def nobody_relays(database_url: str | None) -> AsyncIterator[None]:
    """The tables are there, and no relay works beside the handler."""
    if database_url is None:
        yield
        return
    database = await migrated(database_url)
    try:
        async with database.connection() as connection:
            await connection.run_sync(leases.renew, "nobody", FOREVER)
        yield
    finally:
        await database.close()


async def rows_of(
    broker: str, url: str, postgres: Server, messages: int, repetitions: int
) -> list[Row]:
    """Ordered against unordered, with and without a database."""
    envelopes = with_keys(make_envelopes(WARM_UP + messages))
    rows: list[Row] = []
    for where, database in (("without a database", None), ("to commit", postgres)):
        found: dict[bool, list[Rate]] = {True: [], False: []}
        for _ in range(repetitions):
            for is_ordered, rates in found.items():
                rates.append(await rate_of(url, database, envelopes, is_ordered=is_ordered))
        name = f"{broker}, ordered, {where}"
        rows += rate_rows(name, found[True], {("raw", "unordered"): found[False]}, goal=GOAL)
    return rows


@contextmanager
def broker_at(kind: str) -> Iterator[str]:
    """The URL of a broker of this kind."""
    with ExitStack() as stack:
        if kind == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            yield f"sqlite:///{folder}/broker.db"
        else:
            yield stack.enter_context(serve(kind)).url


def main(
    messages: Annotated[int, typer.Option(min=1000, help="Timed in each run.")] = 10_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 5,
    broker: Annotated[list[str] | None, typer.Option(help="One of them; else all.")] = None,
    output: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("build/ordering.json"),
) -> None:
    """Compare an ordered subscription with the same one without order."""
    began = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 110)
    configure_logs(Settings(log_level="error"))
    for fact in facts():
        console.print(fact, highlight=False, soft_wrap=True)
    rows: list[Row] = []
    failures = []
    for kind in broker or BROKERS:
        try:
            with serve("postgres") as postgres, broker_at(kind) as url:
                rows += asyncio.run(rows_of(kind, url, postgres, messages, repetitions))
        except (ServerMissing, Broken, TimeoutError) as error:
            failures.append(f"{kind}: {error!r}")
            console.print(f"[red]FAILED[/] {escape(failures[-1])}", highlight=False)
    print_table(console, rows)
    write_json(output, rows)
    console.print(f"{time.perf_counter() - began:.0f} s; rows in {output}.", highlight=False)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
