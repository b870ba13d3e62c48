"""Sagas over services against workflow engines in one process, and the parts of a saga against what
is written by hand: `python -m benchmarks.sagas`.

| rows                | what is measured                                                           |
|---------------------|----------------------------------------------------------------------------|
| thin saga, shop     | workflows a second, with so many of them under way at any time             |
| one idle saga       | from the request of a workflow to the commit of its end, nothing else runs |
| coordinator         | waiting answers a second, against the same rows written by raw SQL         |
| one hop             | from publishing to another service's commit, at 50 messages a second       |
| 100,000 open sagas  | starting, answering, timing out and looking at sagas, against 1,000 open   |
| (a second table)    | statements, commits and round trips of one workflow                        |

The programs are described in `sagas_programs`, `sagas_shop`, `sagas_coordinator`, `sagas_hop` and
`sagas_open`, the counts in `sagas_counts`. A thin saga is compared with an engine's workflow of
three empty steps, and so is the shop's saga, whose steps are not empty. A goal is what the project
wants of the ratio, on a machine that does nothing else.

Programs take turns within each round, and the medians of the rounds are shown. All run on the event
loop that `eventmesh worker` would use, and ours at its default settings. At the end of each run all
rows are counted in the databases. The exit code is 1 when a program did not do all of its work.

DBOS works in many threads and ours in one, so on a machine that does other things besides, DBOS
gets more of it. Then look at the CPU ratio: workflows by the CPU time of this process alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.measure import Broken, Mark, Rate, settle_memory
from benchmarks.report import Row, facts, latency_rows, print_table, rate_rows
from benchmarks.sagas_coordinator import coordinator_rates
from benchmarks.sagas_counts import Count, counts, print_counts, print_texts, run_all
from benchmarks.sagas_hop import hops_by_hand, our_hops
from benchmarks.sagas_open import FEW as FEW_OPEN
from benchmarks.sagas_open import MANY as MANY_OPEN
from benchmarks.sagas_open import open_saga_latencies
from benchmarks.sagas_programs import (
    MakeEngine,
    Run,
    Servers,
    dbos_workflows,
    edda_workflows,
    our_sagas,
)
from benchmarks.sagas_shop import shop_orders
from eventmesh.cli.process import run_on_loop
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import ServerMissing, serve

FEW, MANY = 20, 100
"""How many workflows are under way at any time."""

WARM_UP = 10
LOOK_EVERY = 0.02
LEVEL_TIMEOUT = 15.0
"""Seconds after which a rate is taken of what has ended by then, and so with its warm-up."""

IDLE_PAUSE = 0.02
"""Seconds of quiet before each idle workflow."""

VISIT_TIMEOUT = 180.0
"""Seconds after which a run of a program counts as hung."""

PARTS = ("workflows", "coordinator", "hop", "open", "counts")
OURS, DBOS, EDDA, SHOP = "ours", "DBOS", "Edda", "shop"


@dataclass(frozen=True)
class Sizes:
    """How much is measured in each round."""

    level_seconds: float = 3.0
    idle: int = 40
    """Workflows one after another, as far as they are done in `level_seconds`."""
    answers: int = 2_000
    hops: int = 300
    counted: int = 60
    turns: int = 100


QUICK = Sizes(level_seconds=2.0, idle=20, answers=500, hops=150, counted=40, turns=40)


@dataclass(frozen=True)
class Engine:
    """A program, and at which levels its rate is measured; whether it also runs idle workflows."""

    make: MakeEngine
    levels: Sequence[int]
    idle: bool = True


ENGINES = {
    OURS: Engine(our_sagas, (FEW, MANY)),
    DBOS: Engine(dbos_workflows, (FEW, MANY)),
    EDDA: Engine(edda_workflows, (FEW,)),
    SHOP: Engine(shop_orders, (MANY,), idle=False),
}


@dataclass
class Found:
    """Of one engine, by round."""

    idle: list[list[float]] = field(default_factory=list)
    rates: dict[int, list[Rate]] = field(default_factory=dict)


async def visit(engine: Engine, servers: Servers, sizes: Sizes, found: Found) -> None:
    """One round of an engine, in new databases."""
    async with asyncio.timeout(VISIT_TIMEOUT), engine.make(servers) as run:
        await run_all(run, WARM_UP, 1)
        settle_memory()
        if engine.idle:
            found.idle.append(await _idle(run, sizes))
        for level in engine.levels:
            rate = await _rate(run, level, sizes.level_seconds)
            found.rates.setdefault(level, []).append(rate)


async def _idle(run: Run, sizes: Sizes) -> list[float]:
    """Milliseconds of each workflow."""
    until = perf_counter() + sizes.level_seconds
    took: list[float] = []
    while len(took) < sizes.idle and (len(took) < 2 or perf_counter() < until):
        await asyncio.sleep(IDLE_PAUSE)
        began = perf_counter()
        await run()
        took.append((perf_counter() - began) * 1000)
    return took


async def _rate(run: Run, at_once: int, seconds: float) -> Rate:
    """Workflows a second that end while so many are under way at any time. The first of each caller
    is not timed. At least two of each caller are, because those that began together may end so."""
    ended, is_over = 0, False

    async def call() -> None:
        nonlocal ended
        while not is_over:
            await run()
            ended += 1

    async def until(number: int, least: float) -> None:
        began, took = perf_counter(), 0.0
        while took < LEVEL_TIMEOUT and (ended < number or took < least):
            await asyncio.sleep(LOOK_EVERY)
            took = perf_counter() - began

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(call())
        await until(at_once, 0.0)
        before, began = ended, Mark()
        await until(before + 2 * at_once, seconds)
        after, now = ended, Mark()
        is_over = True
    if after == before:
        raise Broken(f"no workflow ended within {LEVEL_TIMEOUT:g} s")
    return began.rate(after - before, until=now)


async def workflow_rows(servers: Servers, sizes: Sizes, rounds: int) -> list[Row]:
    """Rates and idle latencies of all engines."""
    found = {name: Found() for name in ENGINES}
    for _ in range(rounds):
        for name, engine in ENGINES.items():
            try:
                await visit(engine, servers, sizes, found[name])
            except* (Broken, TimeoutError) as errors:
                raise Broken(f"{name}: {errors.exceptions!r}") from errors
    dbos, edda = (
        {(name, f"{name}, {level} at a time"): rates for level, rates in found[name].rates.items()}
        for name in (DBOS, EDDA)
    )
    rows = []
    for level, rates in found[OURS].rates.items():
        rows += rate_rows(f"thin saga, {level} at a time", rates, dbos | edda, unit="wf/s")
    for level, rates in found[SHOP].rates.items():
        what = f"shop, {level} at a time"
        rows += rate_rows(what, rates, dbos, unit="wf/s", goal="at least 4")
    idle = {(name, name): found[name].idle for name in (DBOS, EDDA)}
    return rows + latency_rows("one idle saga", 50, found[OURS].idle, idle)


async def coordinator_rows(servers: Servers, sizes: Sizes, rounds: int) -> list[Row]:
    """Waiting answers a second."""
    found = [await coordinator_rates(servers, sizes.answers) for _ in range(rounds)]
    ours, raw = zip(*found, strict=True)
    return rate_rows("coordinator alone", ours, {("raw", "raw SQL"): raw}, unit="answers/s")


async def hop_rows(servers: Servers, sizes: Sizes, rounds: int) -> list[Row]:
    """Latencies of one hop."""
    ours, by_hand = [], []
    for _ in range(rounds):
        ours.append(await our_hops(servers, sizes.hops))
        by_hand.append(await hops_by_hand(servers, sizes.hops))
    peers = {("by hand", "by hand"): by_hand}
    return [
        row
        for percent in (50, 99)
        for row in latency_rows("one hop", percent, ours, peers, goal="at most 2")
    ]


async def open_rows(servers: Servers, sizes: Sizes, rounds: int) -> list[Row]:
    """Latencies where many sagas are open. Counting them is the one that must take longer."""
    found = [await open_saga_latencies(servers, sizes.turns) for _ in range(rounds)]
    few_name = f"{FEW_OPEN:,} open"
    return [
        row
        for what in found[0][0]
        for row in latency_rows(
            f"{what}, {MANY_OPEN:,} open,",
            50,
            [many[what] for many, _ in found],
            {("open", few_name): [few[what] for _, few in found]},
        )
    ]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each program.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One short round.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help=f"One of {', '.join(PARTS)}; else all.")
    ] = None,
    statements: Annotated[
        bool, typer.Option("--statements", help="Also what our sagas execute, by text.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("build/sagas.json"),
) -> None:
    """Compare sagas with workflow engines, and their parts with what is written by hand."""
    began = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 130)
    configure_logs(Settings(log_level="warning"))
    parts = {
        "workflows": workflow_rows,
        "coordinator": coordinator_rows,
        "hop": hop_rows,
        "open": open_rows,
    }
    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(PARTS)}")
    rounds, sizes = (1, QUICK) if quick else (rounds, Sizes())
    for fact in (*facts(), f"dbos {version('dbos')}, edda-framework {version('edda-framework')}"):
        console.print(fact, highlight=False, soft_wrap=True)
    rows: list[Row] = []
    counted: list[Count] = []
    failures: list[str] = []

    def fail(what: str, error: object) -> None:
        failures.append(f"{what}: {error!r}")
        console.print(f"[red]FAILED[/] {escape(failures[-1])}", highlight=False)

    try:
        with serve("postgres") as postgres, serve("redis") as redis:
            servers = Servers(postgres, redis.url)
            for part in only or PARTS:
                try:
                    if part == "counts":
                        for name in (OURS, DBOS, EDDA):
                            make = ENGINES[name].make
                            counted += run_on_loop(
                                Settings(), counts(name, make, servers, sizes.counted)
                            )
                    else:
                        rows += run_on_loop(Settings(), parts[part](servers, sizes, rounds))
                except* (Broken, TimeoutError) as errors:
                    fail(part, errors.exceptions)
    except ServerMissing as error:
        fail("servers", error)
    if rows:
        print_table(console, rows)
    if counted:
        print_counts(console, counted)
    if statements:
        print_texts(console, [each for each in counted if each.program == OURS])
    output.parent.mkdir(parents=True, exist_ok=True)
    found = {"rows": [asdict(row) for row in rows], "counts": [asdict(each) for each in counted]}
    output.write_text(json.dumps(found, indent=2) + "\n")
    console.print(f"{time.perf_counter() - began:.0f} s; rows in {output}.", highlight=False)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
