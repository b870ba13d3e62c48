"""An ordered subscription with 1, 2 and 4 workers: `python -m benchmarks.ordering_workers`.

Workers at their default settings, without a database, work off a backlog of messages of a thousand
keys. It is timed from when each of them has handled some until a tenth is left. Beside the rate,
the processor time of the workers, of the broker (a server of our own on this machine) and of
everything else on the machine is measured, and how long processors were idle. That says what the
limit is: the processors, if none was idle; the thread of a lone worker, if it kept one processor
busy; otherwise what workers and broker wait for. The numbers of workers take turns within each
repetition. The exit code is 1 when messages of a key came in another order, got lost, or came
twice.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Broken, Rate
from benchmarks.messages import in_batches, make_envelopes
from benchmarks.ordering import with_keys
from benchmarks.ordering_workers_service import EFFECTS, LINE
from benchmarks.processes import Program, running
from benchmarks.report import Row, facts, print_table, rate_rows, write_json
from eventmesh.clock import SystemClock
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import serve
from eventmesh.transports.base import Order, Subscription, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope

WORKERS = (1, 2, 4)
WARM = 500
"""Messages that each worker has handled when the clock starts."""

PATIENCE = 120.0
POLL = 0.05
TICKS = os.sysconf("SC_CLK_TCK")

PROJECT = '[tool.eventmesh.services]\nbench = "benchmarks.ordering_workers_service:service"\n'
SUBSCRIPTION = Subscription("bench.handle", ("shop.order_placed",), Order())


@dataclass(frozen=True)
class Mark:
    """A moment, and the processor seconds until then."""

    at: float
    handled: int
    workers: float
    broker: float
    machine: float
    idle: float

    def cores(self, until: Mark) -> tuple[float, float, float, float]:
        """How many processors the workers, the broker and all others kept busy until then, and how
        many were idle."""
        seconds = until.at - self.at
        workers, broker = until.workers - self.workers, until.broker - self.broker
        others = until.machine - self.machine - workers - broker
        idle = until.idle - self.idle
        return workers / seconds, broker / seconds, others / seconds, idle / seconds


@dataclass(frozen=True)
class Measured:
    """One run."""

    rate: Rate
    cores: tuple[float, float, float, float]


def measure(url: str, envelopes: Sequence[Envelope], number: int) -> Measured:
    """So many workers on the backlog of these messages."""
    prefix = f"bench{secrets.token_hex(4)}"
    asyncio.run(publish(url, prefix, envelopes))
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(number)]
        programs = [stack.enter_context(worker(folder, url, prefix)) for folder in folders]
        deadline = time.monotonic() + PATIENCE

        def until(least: int, of_all: int) -> Mark:
            while True:
                counts = [(folder / EFFECTS).stat().st_size // LINE for folder in folders]
                if min(counts) >= least and sum(counts) >= of_all:
                    return mark(programs, sum(counts))
                if time.monotonic() > deadline:
                    raise Broken(f"{counts} of {len(envelopes)} messages in {PATIENCE:.0f} s")
                time.sleep(POLL)

        for program in programs:
            program.until_it_says("worker is ready")
        began = until(WARM, 0)
        ended = until(WARM, len(envelopes) * 9 // 10)
        until(WARM, len(envelopes))
        check([(folder / EFFECTS).read_text() for folder in folders], envelopes)
    count = ended.handled - began.handled
    if began.handled > len(envelopes) // 2:
        raise Broken("half of the backlog was handled before all workers had begun: see --messages")
    cpu = ended.workers - began.workers + ended.broker - began.broker
    return Measured(Rate(count / (ended.at - began.at), count / cpu), began.cores(ended))


def mark(programs: Sequence[Program], handled: int) -> Mark:
    """This moment."""
    workers = sum(program.cpu_seconds() for program in programs)
    ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, idle, iowait, irq, softirq = ticks[:7]
    machine = (user + nice + system + irq + softirq) / TICKS
    return Mark(
        time.monotonic(), handled, workers, broker_seconds(), machine, (idle + iowait) / TICKS
    )


def broker_seconds(of: int | None = None) -> float:
    """Processor time of the server so far: of all that this process, or the one with the id `of`,
    has started and that is no Python program."""
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for each in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (each / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        fields, pid = rest.split(), int(each.name)
        children.setdefault(int(fields[1]), []).append(pid)
        if "python" not in name:
            seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    ours, found = [of or os.getpid()], 0.0
    while ours:
        pid = ours.pop()
        ours += children.get(pid, [])
        found += seconds.get(pid, 0.0)
    return found


def check(effects: Sequence[str], envelopes: Sequence[Envelope]) -> None:
    """Broken unless each message took effect once, and those of each key in their order."""
    lines = sorted(line.split() for text in effects for line in text.splitlines())
    if len(lines) != len(envelopes) or len({number for _, _, number in lines}) != len(envelopes):
        raise Broken(f"{len(lines)} effects of {len(envelopes)} messages")
    last: dict[str, int] = {}
    for _, key, number in lines:
        if int(number) < last.get(key, -1):
            raise Broken(f"messages of {key} took effect in another order")
        last[key] = int(number)


async def publish(url: str, prefix: str, envelopes: Sequence[Envelope]) -> None:
    settings = Settings(broker_url=url, broker_prefix=prefix)
    async with open_transport(url, SystemClock(), settings.transport_options) as transport:
        await transport.declare([SUBSCRIPTION])
        for batch in in_batches(envelopes, 1_000):
            await publish_or_raise(transport, batch)


@contextmanager
def worker(folder: Path, url: str, prefix: str) -> Iterator[Program]:
    """A worker process in this folder."""
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / EFFECTS).touch()
    environment = {
        "EVENTMESH_BROKER_URL": url,
        "EVENTMESH_BROKER_PREFIX": prefix,
        "EVENTMESH_LOG_FORMAT": "json",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-m", "eventmesh", "worker", "--no-supervise", "bench"]
    with running(command, folder, environment) as program:
        yield program


def rows_of(broker: str, found: dict[int, list[Measured]]) -> list[Row]:
    """More workers against one."""
    rates = {number: [each.rate for each in runs] for number, runs in found.items()}
    return [
        row
        for number in WORKERS[1:]
        for row in rate_rows(
            f"{broker}, {number} workers", rates[number], {("raw", "one"): rates[WORKERS[0]]}
        )
    ]


def print_cores(console: Console, broker: str, found: dict[int, list[Measured]]) -> None:
    table = Table(title=f"{broker}: processors of {os.cpu_count()} kept busy, in each repetition")
    busy = ("by the workers", "by the broker", "by others", "idle")
    for heading in ("workers", "messages/s", *busy):
        table.add_column(heading, justify="right")
    for heading in ("µs of a worker", "µs of the broker"):
        table.add_column(f"{heading} per message", justify="right")
    for number, runs in found.items():
        for run in runs:
            cores = [f"{each:.2f}" for each in run.cores]
            costs = [f"{each / run.rate.wall * 1e6:.0f}" for each in run.cores[:2]]
            table.add_row(str(number), f"{run.rate.wall:,.0f}", *cores, *costs)
    console.print(table)


def main(
    messages: Annotated[
        int, typer.Option(min=5_000, help="The backlog; most of a small one is gone at the start.")
    ] = 60_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    broker: Annotated[list[str] | None, typer.Option(help="redis or rabbitmq; else both.")] = None,
    output: Annotated[Path, typer.Option(help="For the rows.")] = Path(
        "build/ordering-workers.json"
    ),
) -> None:
    """Compare more worker processes of an ordered subscription with one."""
    console = Console(width=None if Console().is_terminal else 110)
    for fact in facts():
        console.print(fact, highlight=False, soft_wrap=True)
    envelopes = with_keys(make_envelopes(messages))
    rows: list[Row] = []
    for kind in broker or ("redis", "rabbitmq"):
        found: dict[int, list[Measured]] = {number: [] for number in WORKERS}
        with serve(kind, way="private") as server:
            for _ in range(repetitions):
                for number, runs in found.items():
                    runs.append(measure(server.url, envelopes, number))
        rows += rows_of(kind, found)
        print_cores(console, f"{kind} {server.version}", found)
    print_table(console, rows)
    write_json(output, rows)


if __name__ == "__main__":
    typer.run(main)
