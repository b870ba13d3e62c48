"""What keys that are held back cost, and what partitions cost while nothing happens:
`python -m benchmarks.ordering_costs`.

**Held keys.** The first message of each key fails and is to be retried in an hour, so that two more
of its key wait behind it. It is timed until all keys are held, or the consumer takes no more. Then
the memory by which the consumer and Redis have grown is looked at, and what the consumer does while
all is held. All first messages are published before the others: a consumer that took many messages
of few keys would be full before it had all keys.

**Idle partitions.** A consumer of a subscription without messages, with 1, 16 and 64 partitions.
Redis has no partitions, so there it is slots into which a prefix is spread. Processor time is told
in percent of one processor. Commands are what the consumer sends: on RabbitMQ frames of AMQP.

Each figure is of a new process.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.measure import settle_memory
from benchmarks.messages import in_batches, make_envelopes
from benchmarks.ordering_workers import broker_seconds
from benchmarks.report import facts
from eventmesh.clock import SystemClock
from eventmesh.testing.servers import serve
from eventmesh.transports.base import Order, Subscription, TransportOptions, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.transports.outcome import RetryAfter
from eventmesh.wire.envelope import Envelope

KEYS = (1_000, 5_000, 10_000, 20_000)
BEHIND = 2
"""Messages of each key that wait behind its first."""

PARTITIONS = (1, 16, 64)
AN_HOUR = 3600.0
FULL_AFTER = 3.0
"""Seconds without a message after which a consumer takes no more."""

PATIENCE = 60.0
"""Seconds to wait for the first message."""

NOTING_SECONDS = 15.0
"""Until RabbitMQ has all notes on retries, which are written in the background."""

LOOK_SECONDS = 10.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Held:
    """How many keys were held after so many seconds; for how many seconds the consumer's processor
    was busy with that, and the broker's; megabytes by which the consumer and Redis have grown; the
    percentage of a processor that the consumer takes while all is held."""

    keys: int
    seconds: float
    cpu: float
    broker: float
    memory: float
    redis_memory: float
    idle: float


@dataclass(frozen=True)
class Idle:
    """Percent of a processor, by the consumer and by the broker, and commands a second."""

    cpu: float
    broker: float
    commands: float


async def hold(url: str, keys: int) -> Held:
    """Let so many keys be held."""
    prefix, clock = f"bench{secrets.token_hex(4)}", SystemClock()
    subscription = Subscription("bench.handle", ("shop.order_placed",), Order())
    async with open_transport(url, clock, TransportOptions(prefix=prefix)) as publishing:
        await publishing.declare([subscription])
        for batch in in_batches(in_turns(make_envelopes(keys * (1 + BEHIND)), keys), 1_000):
            await publish_or_raise(publishing, batch)
        published = await redis_memory(url)
    del batch
    async with open_transport(url, clock, TransportOptions(prefix=prefix)) as transport:
        settle_memory()
        memory_before = memory()
        held: set[str | None] = set()
        seconds = 0.0
        began, cpu = time.monotonic(), time.process_time()
        broker_before = broker_seconds(os.getppid())
        async with transport.consume(subscription, prefetch=500) as consumer:
            while len(held) < keys:
                try:
                    async with asyncio.timeout(FULL_AFTER if held else PATIENCE):
                        deliveries = await consumer.receive(500)
                except TimeoutError:
                    break
                await consumer.settle([(each, RetryAfter(AN_HOUR)) for each in deliveries])
                held |= {each.envelope.key for each in deliveries}
                seconds = time.monotonic() - began
            receiving = asyncio.ensure_future(consumer.receive(500))
            await asyncio.sleep(NOTING_SECONDS)
            busy = time.process_time() - cpu
            broker = broker_seconds(os.getppid()) - broker_before
            settle_memory()
            idle = await percent(LOOK_SECONDS)
            grown = memory() - memory_before
            redis_grown = await redis_memory(url) - published
            receiving.cancel()
            await asyncio.wait([receiving])
    return Held(len(held), seconds, busy, broker, grown / 1e6, redis_grown / 1e6, idle)


def in_turns(envelopes: Sequence[Envelope], keys: int) -> list[Envelope]:
    """The messages with so many keys, which take turns."""
    return [
        Envelope({**each.attributes, "partitionkey": f"key-{number % keys}"}, each.data)
        for number, each in enumerate(envelopes)
    ]


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def redis_memory(url: str) -> int:
    if not url.startswith("redis"):
        return 0
    async with Redis.from_url(url) as client:
        return int((await client.info("memory"))["used_memory"])


async def percent(seconds: float) -> float:
    """How much of a processor this process takes in these seconds."""
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return 100 * (time.process_time() - cpu) / (time.monotonic() - began)


async def rest(url: str, number: int) -> Idle:
    """Consume nothing, from so many partitions or slots."""
    prefix, clock = f"bench{secrets.token_hex(4)}", SystemClock()
    is_redis = url.startswith("redis")
    order = Order() if is_redis else Order(partitions=number)
    subscription = Subscription("bench.handle", ("shop.order_placed",), order)
    broker = f"{url}?slots={number}" if is_redis else url
    frames = count_frames()
    async with (
        open_transport(broker, clock, TransportOptions(prefix=prefix)) as transport,
        transport.consume(subscription, prefetch=500) as consumer,
    ):
        receiving = asyncio.ensure_future(consumer.receive(500))
        await asyncio.sleep(2 * FULL_AFTER)
        commands = await redis_commands(url) if is_redis else frames()
        busy = broker_seconds(os.getppid())
        cpu = await percent(LOOK_SECONDS)
        busy = broker_seconds(os.getppid()) - busy
        commands = (await redis_commands(url) if is_redis else frames()) - commands
        receiving.cancel()
        await asyncio.wait([receiving])
    return Idle(cpu, 100 * busy / LOOK_SECONDS, commands / LOOK_SECONDS)


async def redis_commands(url: str) -> int:
    async with Redis.from_url(url) as client:
        return int((await client.info("stats"))["total_commands_processed"])


def count_frames() -> Callable[[], int]:
    """How many frames of AMQP this process has written since."""
    count = 0
    write = asyncio.StreamWriter.write

    def counted(writer: asyncio.StreamWriter, data: Any) -> None:
        nonlocal count
        at = 0
        while at + 7 <= len(data) and data[at] in (1, 2, 3, 8):
            count += 1
            at += 8 + int.from_bytes(data[at + 3 : at + 7])
        write(writer, data)

    asyncio.StreamWriter.write = counted  # type: ignore[method-assign, assignment]
    return lambda: count


def held_in_a_process(url: str, keys: int) -> Held:
    return asyncio.run(hold(url, keys))


def idle_in_a_process(url: str, number: int) -> Idle:
    return asyncio.run(rest(url, number))


def main(
    broker: Annotated[list[str] | None, typer.Option(help="redis or rabbitmq; else both.")] = None,
) -> None:
    """Hold keys back, and then consume nothing."""
    console = Console(width=None if Console().is_terminal else 110)
    for fact in facts():
        console.print(fact, highlight=False, soft_wrap=True)
    context = multiprocessing.get_context("spawn")
    for kind in broker or ("redis", "rabbitmq"):
        with (
            serve(kind, way="private") as server,
            ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes,
        ):
            held = Table(title=f"{kind} {server.version}: keys that are held back")
            costs = ("µs a key", "of the broker", "MB", "MB of Redis", "% idle")
            for heading in ("keys", "held", "s", *costs):
                held.add_column(heading, justify="right")
            for keys in KEYS:
                some = processes.submit(held_in_a_process, server.url, keys).result()
                held.add_row(
                    *(f"{each:,}" for each in (keys, some.keys)),
                    f"{some.seconds:.2f}",
                    *(f"{each / some.keys * 1e6:.0f}" for each in (some.cpu, some.broker)),
                    *(f"{each:.1f}" for each in (some.memory, some.redis_memory, some.idle)),
                )
            console.print(held)
            what = "slots" if kind == "redis" else "partitions"
            idle = Table(title=f"{kind} {server.version}: {what} without messages")
            for heading in (what, "% of a processor", "% of the broker", "commands/s"):
                idle.add_column(heading, justify="right")
            for number in PARTITIONS:
                one = processes.submit(idle_in_a_process, server.url, number).result()
                figures = (f"{one.cpu:.1f}", f"{one.broker:.1f}", f"{one.commands:.0f}")
                idle.add_row(f"{number}", *figures)
            console.print(idle)


if __name__ == "__main__":
    typer.run(main)
