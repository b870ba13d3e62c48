"""Relaying a backlog from PostgreSQL to a broker, against `faststream-outbox`, and with a hundred
times as many rows waiting: `python -m benchmarks.relays`.

Programs take turns within each repetition. The exit code is 1 when one did not relay everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.contenders_rabbitmq import RabbitContenders
from benchmarks.contenders_redis import RedisContenders
from benchmarks.measure import Broken, Contender, Mark, Rate, settle_memory
from benchmarks.messages import EVENT_BYTES, make_envelopes
from benchmarks.relays_programs import WORKERS, MakeRelay, faststream_outbox, ours
from benchmarks.report import Row, facts, print_table, rate_rows, write_json
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, ServerMissing, fresh_database, serve
from eventmesh.wire.envelope import Envelope

POLL = 0.01
"""Seconds between two looks at how far a relay is."""

RUN_TIMEOUT = 180.0
GROWTH = 100
"""How many times as many rows wait where growth is measured."""


@dataclass(frozen=True)
class Runner:
    """A relay, with how many messages waiting, and how many of these are timed; the first tenth of
    these is its warm-up."""

    make: MakeRelay
    timed: int
    times: int = 1


async def rate_of(runner: Runner, postgres: Server, envelopes: Sequence[Envelope]) -> Rate:
    """Messages a second. Everything is relayed in the end, if no more waits than is timed."""
    envelopes = envelopes[: runner.timed]
    async with (
        asyncio.timeout(RUN_TIMEOUT),
        fresh_database(postgres) as url,
        runner.make(url) as relay,
    ):
        await relay.fill(envelopes, runner.times)
        settle_memory()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(relay.run(stop))
            first, began = await _reach(relay, runner.timed // 10)
            last, ended = await _reach(relay, runner.timed)
            if runner.times == 1:
                stop.set()
            else:
                running.cancel()  # it would relay for as long as its lease
        if runner.times == 1 and (left := await relay.left()):
            raise Broken(f"left {left:,} rows in the database")
    return began.rate(last - first, until=ended)


async def _reach(relay: Any, count: int) -> tuple[int, Mark]:
    while (relayed := await relay.relayed()) < count:  # noqa: ASYNC110  # of no event
        await asyncio.sleep(POLL)
    return relayed, Mark()


async def rates(
    kind: str, contenders: Any, postgres: Server, messages: int, repetitions: int, growth: bool
) -> list[Row]:
    """Our relay against others, and against itself with more rows waiting."""
    our = ours(contenders.ours())

    def peer(**options: Any) -> Runner:
        make = faststream_outbox(contenders.faststream(), _relay_to, **options)
        return Runner(make, max(messages // 5, 1_000))

    name = f"faststream-outbox, {WORKERS} workers"
    runners = {
        "ours": Runner(our, messages),
        name: peer(),
        f"{name}, batches of 100": peer(fetch_batch_size=100, terminal_flush_batch_size=100),
    }
    if growth:
        runners["ours, many waiting"] = Runner(our, messages, GROWTH * 10_000 // messages)
    envelopes = make_envelopes(messages)
    found: dict[str, list[Rate]] = {each: [] for each in runners}
    for _ in range(repetitions):
        for each, runner in runners.items():
            found[each].append(await rate_of(runner, postgres, envelopes))
    mine = found.pop("ours")
    many = found.pop("ours, many waiting", None)
    rows = rate_rows(
        f"relay to {kind}", mine, {("faststream", each): found[each] for each in found}
    )
    if many is not None:
        rows += rate_rows(
            f"relay to {kind}, {runners['ours, many waiting'].times * messages:,} waiting",
            many,
            {("ours", f"{messages:,} waiting"): mine},
        )
    return rows


def _relay_to(contender: Contender) -> tuple[Any, dict[str, Any]]:
    """FastStream's broker of a contender, and its stream or queue."""
    known: Any = contender
    place = known.place
    if hasattr(place, "stream"):
        return known.broker, {"stream": place.stream}
    return known.broker, {"queue": known.queue, "persist": True}


def main(
    messages: Annotated[int, typer.Option(min=5000, help="Timed in each run of ours.")] = 10_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each relay.")] = 5,
    broker: Annotated[list[str] | None, typer.Option(help="redis or rabbitmq; else both.")] = None,
    growth: Annotated[bool, typer.Option(help="Also with a million rows waiting.")] = True,
    output: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("build/relays.json"),
) -> None:
    """Compare the rates at which a backlog is relayed."""
    began = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 110)
    configure_logs(Settings(log_level="warning"))
    for fact in (f"events of {EVENT_BYTES} bytes, default durability of PostgreSQL", *facts()):
        console.print(fact, highlight=False, soft_wrap=True)
    rows: list[Row] = []
    failures = []
    kinds: dict[str, Any] = {"redis": RedisContenders, "rabbitmq": RabbitContenders}
    for kind in broker or kinds:
        try:
            with serve("postgres") as postgres, serve(kind) as server:
                contenders = kinds[kind](server.url)
                rows += asyncio.run(
                    rates(
                        kind,
                        contenders,
                        postgres,
                        messages,
                        repetitions,
                        growth and kind == "redis",
                    )
                )
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
