"""Messages with effects in PostgreSQL, exactly once, against the same written by hand on FastStream
and SQLAlchemy: `python -m benchmarks.effects`.

Programs take turns within each repetition. Every row of every table is counted at the end of each
run, and the broker must hold nothing unacknowledged. The exit code is 1 when one did not do so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.contenders_rabbitmq import RabbitContenders
from benchmarks.contenders_redis import RedisContenders
from benchmarks.effects_latency import latencies
from benchmarks.effects_programs import (
    Program,
    Progress,
    by_hand,
    on_eventmesh,
    only_publish,
    record_by_core,
    record_by_orm,
)
from benchmarks.measure import (
    BATCH,
    RUN_TIMEOUT,
    WARM_UP,
    Broken,
    Make,
    Rate,
    check_settled,
    percentile,
    settle_memory,
)
from benchmarks.messages import EVENT_BYTES, in_batches, make_envelopes
from benchmarks.report import Row, facts, print_table, rate_rows, target_row, write_json
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, ServerMissing, fresh_database, serve
from eventmesh.wire.envelope import Envelope

BY_HAND = "by hand"
P50_TARGET, P99_TARGET = 10.0, 30.0  # ms


@dataclass(frozen=True)
class Runner:
    """A program on a client of its own, and how many messages it is given: enough for a second or
    more of work."""

    make: Make
    program: Program
    messages: int
    warm_up: int = WARM_UP


async def rate_of(runner: Runner, postgres: Server, envelopes: Sequence[Envelope]) -> Rate:
    """Messages a second from a backlog, into a new database."""
    envelopes = envelopes[: runner.warm_up + runner.messages]
    progress = Progress(runner.warm_up, len(envelopes))
    async with (
        asyncio.timeout(RUN_TIMEOUT),
        fresh_database(postgres) as url,
        runner.make() as contender,
    ):
        for batch in in_batches(envelopes, BATCH):
            await contender.publish(batch)
        settle_memory()
        await runner.program(contender, url, progress)
        await check_settled(contender)
    return progress.rate()


async def rates(
    name: str,
    ours: dict[str, Runner],
    peers: dict[str, Runner],
    postgres: Server,
    messages: int,
    repetitions: int,
) -> list[Row]:
    """Each of ours against the best of the peers, and the first of ours against all of them."""
    envelopes = make_envelopes(WARM_UP + messages)
    found: dict[str, list[Rate]] = {each: [] for each in [*ours, *peers]}
    for _ in range(repetitions):
        for each, runner in (ours | peers).items():
            found[each].append(await rate_of(runner, postgres, envelopes))
    return [
        row
        for each in ours
        for row in rate_rows(
            f"{name}, {each}", found[each], {(BY_HAND, peer): found[peer] for peer in peers}
        )
    ]


def lineup(
    contenders: RedisContenders | RabbitContenders, messages: int
) -> tuple[dict[str, Runner], dict[str, Runner]]:
    """Ours and the peers on one broker. By hand, a Redis stream is read by one worker, in order,
    unless it is told otherwise; RabbitMQ's prefetch makes it handle many at a time."""
    on = contenders.ours()
    ours = {
        "ORM insert": Runner(on, on_eventmesh(record_by_orm), messages),
        "Core insert": Runner(on, on_eventmesh(record_by_core), messages),
        "no insert": Runner(on, on_eventmesh(only_publish), messages),
    }
    few = max(messages // 8, 500)
    peers = {"FastStream + SQLAlchemy": Runner(contenders.faststream(), by_hand, few, 200)}
    if isinstance(contenders, RedisContenders):
        many = contenders.faststream(max_workers=10)
        peers["FastStream max_workers=10"] = Runner(many, by_hand, few, 200)
    return ours, peers


def main(
    messages: Annotated[int, typer.Option(min=1000, help="Timed in each run of ours.")] = 10_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each program.")] = 5,
    broker: Annotated[list[str] | None, typer.Option(help="redis or rabbitmq; else both.")] = None,
    output: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("build/effects.json"),
) -> None:
    """Compare rates with the hand-written program; measure the latency from publish to commit."""
    began = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 110)
    configure_logs(Settings(log_level="warning"))
    for fact in (f"events of {EVENT_BYTES} bytes, default durability of PostgreSQL", *facts()):
        console.print(fact, highlight=False, soft_wrap=True)
    rows: list[Row] = []
    failures = []
    kinds = {"redis": RedisContenders, "rabbitmq": RabbitContenders}
    for kind in broker or kinds:
        try:
            with serve("postgres") as postgres, serve(kind) as server:
                ours, peers = lineup(kinds[kind](server.url), messages)
                rows += asyncio.run(
                    rates(f"{kind} to commit", ours, peers, postgres, messages, repetitions)
                )
                if kind == "redis":
                    rows += asyncio.run(latency_rows(server.url, postgres, repetitions))
        except (ServerMissing, Broken, TimeoutError) as error:
            failures.append(f"{kind}: {error!r}")
            console.print(f"[red]FAILED[/] {escape(failures[-1])}", highlight=False)
    print_table(console, rows)
    write_json(output, rows)
    console.print(f"{time.perf_counter() - began:.0f} s; rows in {output}.", highlight=False)
    if failures:
        raise typer.Exit(1)


async def latency_rows(url: str, postgres: Server, repetitions: int) -> list[Row]:
    """Publish to commit, published by the worker's own process and by another; against what is
    asked of it."""
    rows = []
    for by in ("the worker's process", "another process"):
        runs = [
            await latencies(url, postgres, own_process=by.startswith("the"))
            for _ in range(repetitions)
        ]
        rows += [
            target_row(
                f"publish to commit p{percent}, by {by}",
                [percentile(found, percent) for found in runs],
                target,
            )
            for percent, target in ((50, P50_TARGET), (99, P99_TARGET))
        ]
    return rows


if __name__ == "__main__":
    typer.run(main)
