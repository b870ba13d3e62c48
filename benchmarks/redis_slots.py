"""What spreading a prefix over several slots costs and gains: `python -m benchmarks.redis_slots`.

Transports that differ by the number of slots take turns: each publishes the same messages, and then
receives and settles them. On one Redis, the ratio of their rates says what the parts cost. With
`--cluster`, which needs Docker, they use a Redis Cluster of three masters, and the processor time
of the busiest one tells what they gain: it is the limit of the whole. The rates do not, because one
process publishes and consumes, which is busier than any master. Processor time also tells more than
rates on a machine that has something else to do.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Annotated

import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.redis_cluster_nodes import running_cluster
from eventmesh.clock import SystemClock
from eventmesh.testing.servers import serve
from eventmesh.transports.base import Order, Subscription, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import DONE
from eventmesh.wire.envelope import Envelope

MESSAGE = "bench.happened"

Measure = Callable[[], Awaitable[Sequence[float]]]
"""Seconds of processor time that each server has used so far."""


@dataclass(frozen=True)
class Place:
    """Where it is measured."""

    name: str
    url: str
    used: Measure


@dataclass
class Figures:
    """Of one number of slots, in each turn."""

    published: list[float] = field(default_factory=list)
    consumed: list[float] = field(default_factory=list)
    busiest: list[float] = field(default_factory=list)
    """Microseconds of processor time of the busiest server, for each message."""
    own: list[float] = field(default_factory=list)
    """The same of this process."""


@dataclass(frozen=True)
class Load:
    """What each turn does."""

    count: int
    batch: int
    order: Order | None


def messages(count: int, keys: int) -> list[Envelope]:
    clock = SystemClock()
    return [
        Envelope(
            {
                "id": clock.new_id(),
                "type": MESSAGE,
                "source": "/bench",
                "partitionkey": f"customer-{number % keys}",
            },
            b"x" * 300,
        )
        for number in range(count)
    ]


async def turn(place: Place, slots: int, load: Load, into: Figures) -> None:
    """Publish and consume so many messages under a prefix of its own."""
    url = f"{place.url}{'&' if '?' in place.url else '?'}slots={slots}"
    count, batch_size = load.count, load.batch
    options = TransportOptions(prefix=f"bench-{secrets.token_hex(5)}")
    subscription = Subscription("bench.handle", (MESSAGE,), load.order)
    async with open_transport(url, SystemClock(), options) as transport:
        await transport.declare([subscription])
        sent = messages(count, keys=count // 10)
        before, own, begun = await place.used(), time.process_time(), time.perf_counter()
        for start in range(0, count, batch_size):
            await publish_or_raise(transport, sent[start : start + batch_size])
        published = time.perf_counter()
        async with transport.consume(subscription, prefetch=2 * batch_size) as consumer:
            left = count
            while left:
                batch = await consumer.receive(batch_size)
                await consumer.settle([(delivery, DONE) for delivery in batch])
                left -= len(batch)
            consumed, own = time.perf_counter(), time.process_time() - own
        after = await place.used()
    into.published.append(count / (published - begun))
    into.consumed.append(count / (consumed - published))
    most = max(late - early for early, late in zip(before, after, strict=True))
    into.busiest.append(most / count * 1e6)
    into.own.append(own / count * 1e6)


async def processor_time(ports: Sequence[tuple[int, str]]) -> list[float]:
    """Of the servers at these ports, with their passwords."""
    used = []
    for port, password in ports:
        async with Redis(host="127.0.0.1", port=port, password=password, protocol=2) as client:
            told = await client.info("cpu")
        used.append(float(told["used_cpu_user"]) + float(told["used_cpu_sys"]))
    return used


@asynccontextmanager
async def one_server() -> AsyncIterator[Place]:
    with serve("redis") as server:

        async def used() -> list[float]:
            async with Redis.from_url(server.url) as client:
                told = await client.info("cpu")
            return [float(told["used_cpu_user"]) + float(told["used_cpu_sys"])]

        yield Place("one Redis", server.url, used)


@asynccontextmanager
async def cluster_of_three(image: str) -> AsyncIterator[Place]:
    async with running_cluster(image) as cluster:
        ports = [(node.port, node.password) for node in cluster.masters]
        url = cluster.url.partition("?")[0]
        yield Place("a Redis Cluster of three masters", url, lambda: processor_time(ports))


async def measure(place: Place, slots: Sequence[int], load: Load, turns: int) -> dict[int, Figures]:
    figures: dict[int, Figures] = defaultdict(Figures)
    for number in slots:  # to warm up
        await turn(place, number, replace(load, count=load.count // 5), Figures())
    for _ in range(turns):
        for number in slots:
            await turn(place, number, load, figures[number])
    return figures


def report(console: Console, title: str, figures: dict[int, Figures]) -> None:
    """The medians, and their ratios to those of the first."""
    table = Table(title=title)
    processor = ("busiest server, µs/message", "this process")
    for name in ("slots", "published/s", "ratio", "consumed/s", "ratio", *processor):
        table.add_column(name, justify="right")
    first = next(iter(figures.values()))
    for slots, each in figures.items():
        table.add_row(
            str(slots),
            f"{median(each.published):,.0f}",
            f"{median(each.published) / median(first.published):.2f}",
            f"{median(each.consumed):,.0f}",
            f"{median(each.consumed) / median(first.consumed):.2f}",
            f"{median(each.busiest):.1f}",
            f"{median(each.own):.1f}",
        )
    console.print(table)


def main(
    count: Annotated[int, typer.Option(min=1_000, help="Messages in each turn.")] = 20_000,
    turns: Annotated[int, typer.Option(min=1, help="How often each number takes its turn.")] = 5,
    batch: Annotated[
        int, typer.Option(min=1, help="Messages published or received at once.")
    ] = 100,
    slots: Annotated[list[int] | None, typer.Option(help="Numbers of slots to compare.")] = None,
    cluster: Annotated[bool, typer.Option("--cluster", help="Three masters in Docker.")] = False,
    image: Annotated[
        str, typer.Option(envvar="EVENTMESH_TEST_REDIS_IMAGE", help="Of Redis 7 or later.")
    ] = "redis:8",
) -> None:
    """Compare prefixes in different numbers of slots."""
    numbers = slots or ([1, 6] if cluster else [1, 4])
    console = Console(width=None if Console().is_terminal else 110)

    async def run() -> None:
        async with cluster_of_three(image) if cluster else one_server() as place:
            for ordered in (False, True):
                load = Load(count, batch, Order() if ordered else None)
                figures = await measure(place, numbers, load, turns)
                kind = "ordered" if ordered else "not ordered"
                report(console, f"{place.name}, {kind}, batches of {batch:,}", figures)

    asyncio.run(run())


if __name__ == "__main__":
    typer.run(main)
