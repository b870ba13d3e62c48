"""A worker's memory while a million messages wait, and while it works them off: `python -m
benchmarks.waiting`. The exit code is 1 when not all of them were handled."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.at_rest import worker
from benchmarks.messages import in_batches, make_envelopes
from benchmarks.processes import Program
from benchmarks.programs import COUNTED
from eventmesh.clock import SystemClock
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import serve
from eventmesh.transports.base import Subscription, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope

MESSAGE = "shop.order_placed"
MADE = 10_000
"""Different messages; they are published again and again under new ids."""

BATCH = 1_000
PATIENCE = 600.0


@dataclass(frozen=True)
class Point:
    """How many messages wait, and how much memory the worker holds."""

    waiting: int
    memory_mb: float
    seconds: float


def main(
    messages: Annotated[int, typer.Option(min=COUNTED, help="How many wait.")] = 1_000_000,
    broker: Annotated[list[str] | None, typer.Option(help="redis, rabbitmq or sqlite.")] = None,
    output: Annotated[Path, typer.Option(help="Where the points go.")] = Path("build/waiting.json"),
) -> None:
    """Fill a subscription, then let a worker empty it, looking at its memory."""
    console = Console()
    messages -= messages % COUNTED
    curves: dict[str, list[Point]] = {}
    for kind in broker or ["redis", "rabbitmq"]:
        with _broker(kind) as url:
            curves[kind] = curve(url, messages)
        _print(console, kind, curves[kind])
    output.parent.mkdir(parents=True, exist_ok=True)
    rows = {kind: [asdict(point) for point in points] for kind, points in curves.items()}
    output.write_text(json.dumps(rows, indent=2) + "\n")


def curve(url: str, messages: int) -> list[Point]:
    """The worker's memory with ever fewer messages waiting: before the first, and down to none."""
    prefix = f"bench{secrets.token_hex(4)}"
    with worker(url, 1, EVENTMESH_BROKER_PREFIX=prefix) as empty:
        before = Point(0, empty.resident_bytes() / 2**20, 0.0)
    asyncio.run(_fill(url, prefix, messages))
    with worker(url, 1, EVENTMESH_BROKER_PREFIX=prefix) as program:
        return [before, *_points(program, messages)]


def _points(program: Program, messages: int) -> Iterator[Point]:
    began = time.perf_counter()
    for handled in range(0, messages + 1, COUNTED):
        if handled:
            program.until_it_says(f"handled {handled}\n", patience=PATIENCE)
        seconds = time.perf_counter() - began
        yield Point(messages - handled, program.resident_bytes() / 2**20, seconds)


async def _fill(url: str, prefix: str, messages: int) -> None:
    settings, clock = Settings(broker_url=url, broker_prefix=prefix), SystemClock()
    made = make_envelopes(MADE)
    subscription = Subscription("bench.count_orders", (MESSAGE,))
    async with open_transport(url, clock, settings.transport_options) as transport:
        await transport.declare([subscription])
        for number in range(0, messages, MADE):
            for batch in in_batches(made, BATCH):
                await publish_or_raise(transport, _anew(batch[: messages - number], clock))


def _anew(batch: Sequence[Envelope], clock: SystemClock) -> list[Envelope]:
    return [Envelope({**each.attributes, "id": clock.new_id()}, each.data) for each in batch]


@contextmanager
def _broker(kind: str) -> Iterator[str]:
    with ExitStack() as stack:
        if kind == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="eventmesh-bench-"))
            yield f"sqlite:///{folder}/broker.db"
        else:
            yield stack.enter_context(serve(kind)).url


def _print(console: Console, kind: str, points: Sequence[Point]) -> None:
    table = Table(title=f"{kind}: a worker's memory by messages waiting")
    for heading in ("waiting", "memory, MB", "after, s"):
        table.add_column(heading, justify="right")
    step = max(1, len(points) // 10)
    for number, point in enumerate(points):
        if number % step == 0 or number in (1, len(points) - 1):
            table.add_row(f"{point.waiting:,}", f"{point.memory_mb:.0f}", f"{point.seconds:.1f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
