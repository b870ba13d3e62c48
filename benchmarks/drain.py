"""A million messages that wait in an outbox, relayed from the first to the last: `python -m
benchmarks.drain`.

The rate is taken of each tenth. What comes to Redis is counted and deleted as it comes, so that
Redis holds no more than a part of it. The exit code is 1 when not all came, each once, or when the
last tenths were slower than the first ones by more than a fifth.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import asyncpg  # type: ignore[import-untyped]
import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from benchmarks.contenders_redis import RedisContenders
from benchmarks.measure import Broken, Mark, settle_memory
from benchmarks.messages import EVENT_BYTES, make_envelopes
from benchmarks.relays_programs import Relaying, ours
from benchmarks.report import facts
from eventmesh.observability.logs import configure_logs
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, ServerMissing, fresh_database, serve

MADE = 10_000
"""Different messages; the others are copies of them."""

PARTS = 10
POLL = 0.01
TRIM_EVERY = 50_000
"""Messages after which Redis is freed of them."""

TIMEOUT = 600.0
STEADY = 0.8
"""The rate of the last three tenths, as a part of that of the first three, at the least."""


@dataclass(frozen=True)
class Part:
    """A tenth: how many waited when it began, its messages a second by the clock on the wall and by
    the CPU time of this process, and how many deleted rows were still in the table at its end."""

    waiting: int
    rate: float
    cpu_rate: float
    dead: int


def main(
    messages: Annotated[int, typer.Option(min=MADE, help="How many wait.")] = 1_000_000,
    output: Annotated[Path, typer.Option(help="Where the parts go.")] = Path("build/drain.json"),
) -> None:
    """Relay a backlog to its end."""
    configure_logs(Settings(log_level="warning"))
    console = Console(width=None if Console().is_terminal else 110)
    for fact in (f"events of {EVENT_BYTES} bytes, default durability of PostgreSQL", *facts()):
        console.print(fact, highlight=False, soft_wrap=True)
    try:
        with serve("postgres") as postgres, serve("redis") as redis:
            began = time.perf_counter()
            parts = asyncio.run(drain(postgres, redis.url, messages // MADE))
    except (ServerMissing, Broken, TimeoutError) as error:
        console.print(f"FAILED {error!r}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    _print(console, parts)
    steadiness = _steadiness(parts)
    console.print(
        f"the last tenths at {steadiness:.2f} of the rate of the first; "
        f"{time.perf_counter() - began:.0f} s with filling",
        highlight=False,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([asdict(part) for part in parts], indent=2) + "\n")
    if steadiness < STEADY:
        raise typer.Exit(1)


async def drain(postgres: Server, url: str, times: int) -> list[Part]:
    """Relay MADE messages so many times over; Broken when not all of them came once."""
    total = times * MADE
    async with (
        asyncio.timeout(TIMEOUT),
        fresh_database(postgres) as database_url,
        RedisContenders(url).ours()() as contender,
        ours(lambda: nullcontext(contender))(database_url) as relay,
    ):
        await relay.fill(make_envelopes(MADE), times)
        settle_memory()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(relay.run(stop))
            tasks.create_task(_free(contender.place, stop))
            parts = await _watch(relay, database_url, total)
            stop.set()
        came, left = await _came(contender.place), await relay.left()
    if (came, left) != (total, 0):
        raise Broken(f"{came:,} of {total:,} messages came to Redis, {left:,} rows are left")
    return parts


async def _watch(relay: Relaying, database_url: str, total: int) -> list[Part]:
    parts: list[Part] = []
    before, mark = await relay.relayed(), Mark()
    for number in range(1, PARTS + 1):
        while (relayed := await relay.relayed()) < total * number // PARTS:  # noqa: ASYNC110
            await asyncio.sleep(POLL)
        rate, began = mark.rate(relayed - before, until=Mark()), before
        dead = await _dead(database_url)
        parts.append(Part(total - began, round(rate.wall, 1), round(rate.cpu, 1), dead))
        before, mark = await relay.relayed(), Mark()
    return parts


async def _free(place: Any, stop: asyncio.Event) -> None:
    """Delete from Redis what has come, again and again."""
    while not stop.is_set():
        if await place.count() > TRIM_EVERY:
            await place.client.xtrim(place.stream, maxlen=0)
        await asyncio.sleep(10 * POLL)


async def _came(place: Any) -> int:
    """How many messages have ever been added."""
    info = await place.client.xinfo_stream(place.stream)
    return int(info["entries-added"])


async def _dead(database_url: str) -> int:
    connection = await asyncpg.connect(
        make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    )
    try:
        query = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'eventmesh_outbox'"
        return int(await connection.fetchval(query))
    finally:
        await connection.close()


def _steadiness(parts: Sequence[Part]) -> float:
    """The rate of the last three parts by that of the first three, medians of each."""
    first, last = (statistics.median(p.rate for p in some) for some in (parts[:3], parts[-3:]))
    return last / first


def _print(console: Console, parts: Sequence[Part]) -> None:
    table = Table(title=f"relaying {parts[0].waiting:,} messages to Redis, by tenths")
    for heading in ("waiting", "msg/s", "msg/s of CPU", "dead rows"):
        table.add_column(heading, justify="right")
    for part in parts:
        table.add_row(
            *(f"{value:,.0f}" for value in (part.waiting, part.rate, part.cpu_rate, part.dead))
        )
    console.print(table)
    total = sum(1 / part.rate for part in parts) / len(parts)
    console.print(f"{1 / total:,.0f} messages a second in all", highlight=False)


if __name__ == "__main__":
    typer.run(main)
