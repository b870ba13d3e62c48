"""EventMesh on Redis and RabbitMQ against the raw client and FastStream: `python -m
benchmarks.transports`.

One process, one event loop, the same messages. Contenders take turns within each repetition, so
that a machine that slows down slows them all. The server comes from where the tests get it (see
`eventmesh.testing.servers`). The exit code is 1 when a contender did not do its work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from benchmarks.at_rest import at_rest
from benchmarks.contenders_rabbitmq import RabbitContenders
from benchmarks.contenders_redis import RedisContenders
from benchmarks.measure import (
    BATCH,
    LATENCY_WARM_UP,
    WARM_UP,
    Make,
    MeasureRate,
    Rate,
    consume_rate,
    idle_latencies,
    percentile,
    publish_rate,
)
from benchmarks.messages import EVENT_BYTES, make_envelopes
from benchmarks.report import Row, facts, latency_row, print_table, rate_rows, write_json
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import ServerMissing, serve
from eventmesh.wire.envelope import Envelope

RAW, FASTSTREAM = "raw", "faststream"
LATENCY_MESSAGES = 200

T = TypeVar("T")


@dataclass(frozen=True)
class Peer:
    """Somebody to be compared with. One that is not `usual` was always beaten by another of its
    family, and costs much time: it runs with --all only."""

    family: str
    name: str
    make: Make
    usual: bool = True


@dataclass(frozen=True)
class Lineup:
    """All that is measured on one broker."""

    broker: str
    ours: Make
    consume: Sequence[Peer]
    publish: Sequence[Peer]
    latency: Sequence[Peer]


@dataclass
class Bench:
    """What a run was asked for, and what it has found so far."""

    console: Console
    envelopes: Sequence[Envelope]
    repetitions: int
    everything: bool
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    async def run(self, lineup: Lineup, version: Awaitable[str], origin: str) -> None:
        """Everything on one broker, which came from `origin`."""
        known = await self._one(f"{lineup.broker}, from: {origin}", version)
        if known is None:
            return
        self.console.print(f"{known}, from: {origin}", highlight=False)
        for what, measure, peers in (
            ("consume", consume_rate, lineup.consume),
            ("publish", publish_rate, lineup.publish),
        ):
            await self._rates(f"{lineup.broker} {what}", measure, lineup.ours, peers)
        await self._latencies(f"{lineup.broker} latency", lineup.ours, lineup.latency)

    async def _rates(
        self, name: str, measure: MeasureRate, ours: Make, peers: Sequence[Peer]
    ) -> None:
        began = time.perf_counter()
        peers = [peer for peer in peers if peer.usual or self.everything]
        mine: list[Rate] = []
        theirs: dict[tuple[str, str], list[Rate]] = {(peer.family, peer.name): [] for peer in peers}
        for _ in range(self.repetitions):
            rate = await self._one(f"{name}, eventmesh", measure(ours, self.envelopes))
            if rate is None:
                return
            mine.append(rate)
            for peer in peers:
                key = (peer.family, peer.name)
                if key not in theirs:
                    continue
                rate = await self._one(f"{name}, {peer.name}", measure(peer.make, self.envelopes))
                if rate is None:
                    del theirs[key]
                else:
                    theirs[key].append(rate)
        self.rows += rate_rows(name, mine, theirs)
        self.console.print(f"{name}: {time.perf_counter() - began:.0f} s", highlight=False)

    async def _latencies(self, name: str, ours: Make, peers: Sequence[Peer]) -> None:
        envelopes = self.envelopes[: LATENCY_MESSAGES + LATENCY_WARM_UP]
        mine = await self._one(f"{name}, eventmesh", idle_latencies(ours, envelopes))
        for peer in peers:
            theirs = await self._one(f"{name}, {peer.name}", idle_latencies(peer.make, envelopes))
            if mine is None or theirs is None:
                continue
            self.rows += [
                latency_row(
                    f"{name} p{percent}",
                    peer.family,
                    peer.name,
                    percentile(mine, percent),
                    percentile(theirs, percent),
                )
                for percent in (50, 99)
            ]

    async def _one(self, name: str, run: Awaitable[T]) -> T | None:
        """What the run found; None when it broke, and then it is not run again."""
        try:
            return await run
        except Exception as error:  # noqa: BLE001  # one that breaks must not hide the others
            self.failures.append(f"{name}: {_told(error)}")
            self.console.print(f"[red]FAILED[/] {escape(self.failures[-1])}", highlight=False)
            return None


def redis_lineup(url: str) -> Lineup:
    """On Redis. A handler that takes a list is FastStream's fastest, and another promise: when one
    message fails, all of its list have failed."""
    on = RedisContenders(url)
    raw = Peer(RAW, "redis-py", on.raw())
    return Lineup(
        "redis",
        on.ours(),
        consume=[
            raw,
            Peer(FASTSTREAM, "FastStream", on.faststream()),
            Peer(FASTSTREAM, "FastStream list handler", on.faststream(batch=True)),
            Peer(FASTSTREAM, "FastStream max_workers=10", on.faststream(max_workers=10), False),
        ],
        publish=[
            Peer(RAW, "redis-py pipeline", on.raw()),
            Peer(RAW, "redis-py MULTI", on.raw(transaction=True)),
            Peer(FASTSTREAM, "FastStream pipeline=", on.faststream()),
            Peer(FASTSTREAM, "FastStream gather", on.faststream(publishing="gather"), False),
            Peer(FASTSTREAM, "FastStream loop", on.faststream(publishing="loop"), False),
        ],
        latency=[raw, Peer(FASTSTREAM, "FastStream", on.faststream(publishing="loop"))],
    )


def rabbitmq_lineup(url: str) -> Lineup:
    """On RabbitMQ."""
    on = RabbitContenders(url)
    pika = Peer(RAW, "aio-pika", on.aio_pika())
    aiormq = Peer(RAW, "aiormq", on.aiormq())
    faststream = Peer(FASTSTREAM, "FastStream", on.faststream())
    return Lineup(
        "rabbitmq",
        on.ours(),
        consume=[pika, aiormq, faststream],
        publish=[
            pika,
            aiormq,
            Peer(FASTSTREAM, "FastStream gather", on.faststream()),
            Peer(FASTSTREAM, "FastStream loop", on.faststream(publishing="loop"), False),
        ],
        latency=[pika, faststream],
    )


def main(
    messages: Annotated[int, typer.Option(min=LATENCY_MESSAGES, help="Timed in each run.")] = 5000,
    repetitions: Annotated[int, typer.Option(min=1, help="Runs of each contender.")] = 5,
    broker: Annotated[list[str] | None, typer.Option(help="redis or rabbitmq; else both.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also settings of the peers known to be slower.")
    ] = False,
    uvloop: Annotated[bool, typer.Option("--uvloop", help="All of them on uvloop.")] = False,
    output: Annotated[Path, typer.Option(help="Where the rows go.")] = Path("build/bench.json"),
) -> None:
    """Compare consume, publish, idle latency and rest with the raw client and FastStream."""
    began = time.perf_counter()
    console = Console(width=None if Console().is_terminal else 110)
    settings = Settings(log_level="warning")
    configure_logs(settings)
    bench = Bench(console, make_envelopes(WARM_UP + messages), repetitions, everything)
    console.print(
        f"{messages:,} events of {EVENT_BYTES} bytes a run after {WARM_UP:,} to warm up, with "
        f"validation; batches of {BATCH}; median of {repetitions}; "
        f"{'uvloop' if uvloop else 'asyncio'}.\n"
        f"eventmesh: default settings (prefetch {settings.prefetch}, groups of "
        f"{settings.group_size}), a whole worker, logging at warning where a worker has info. "
        f"FastStream: without its logger.",
        highlight=False,
        soft_wrap=True,
    )
    for fact in facts():
        console.print(fact, highlight=False, soft_wrap=True)
    for kind, lineup_of, contenders in (
        ("redis", redis_lineup, RedisContenders),
        ("rabbitmq", rabbitmq_lineup, RabbitContenders),
    ):
        if broker and kind not in broker:
            continue
        try:
            with serve(kind) as server, asyncio.Runner(loop_factory=_loop_factory(uvloop)) as loop:
                version = contenders(server.url).version()
                loop.run(bench.run(lineup_of(server.url), version, server.origin))
                bench.rows += at_rest(kind, server.url)
        except ServerMissing as missing:
            bench.failures.append(str(missing))
            console.print(f"[red]MISSING[/] {escape(str(missing))}", highlight=False)
    print_table(console, bench.rows)
    write_json(output, bench.rows)
    console.print(
        f"Ratios of msg/s: the higher, the better; of all else: the lower. CPU ratio: by messages "
        f"per second of client CPU, which a busy machine disturbs less. Dim: another setting of "
        f"that peer is faster. Every id was checked. {time.perf_counter() - began:.0f} s; rows in "
        f"{output}.",
        highlight=False,
        soft_wrap=True,
    )
    if bench.failures:
        raise typer.Exit(1)


def _told(error: BaseException) -> str:
    """The error, and those in it, in one line."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_told, error.exceptions))
    return f"{type(error).__name__}: {error}"


def _loop_factory(uvloop: bool) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not uvloop:
        return None
    from uvloop import new_event_loop  # an extra: only where it is asked for

    return new_event_loop


if __name__ == "__main__":
    typer.run(main)
