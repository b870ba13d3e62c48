"""How soon another relay takes over when one is killed: `python -m benchmarks.takeover`.

Two worker processes of one service share its outbox on PostgreSQL, half of the buckets each, while
messages come in all the time. One of the two is killed by SIGKILL. Measured is, by Redis's own
clock, when the first message that was committed after the kill to a bucket of the dead one is on
Redis, and when that is so of all its buckets. In the end every message must have had its effect
once, and have come to Redis in the order of its key. The exit code is 1 when not, or when a
take-over took longer than promised.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from redis.asyncio import Redis
from rich.console import Console
from sqlalchemy import func, select

from benchmarks.measure import Broken
from benchmarks.report import facts
from benchmarks.takeover_scene import Stored, Stream, Workers, until
from benchmarks.takeover_service import Base, Counted, Effect, make_service
from eventmesh.clock import SystemClock
from eventmesh.observability.logs import configure_logs
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import outbox
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.testing.servers import Server, ServerMissing, fresh_database, serve
from eventmesh.transports.base import Subscription
from eventmesh.transports.factory import open_transport

PROMISED = 5.0
"""Seconds after a SIGKILL within which another relay has taken over."""

LEASE: float = Settings.model_fields["lease_time"].default

RATE = 200
"""Messages a second."""

SUBSCRIPTION = Subscription("bench.note", (Counted.__identity__.name,))


@dataclass(frozen=True)
class TakeOver:
    """Seconds from a kill until the first bucket of the dead one was relayed again, and all."""

    buckets: int
    first: float
    every: float


@dataclass(frozen=True)
class Account:
    """What became of all messages. `copies` came to Redis once more than they had to."""

    messages: int
    lost: int
    doubled: int
    out_of_order: int
    copies: int

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.out_of_order)


def main(
    kills: Annotated[int, typer.Option(min=1, help="How often a worker is killed.")] = 5,
    lease_time: Annotated[float, typer.Option(help="Seconds; the default is a worker's.")] = LEASE,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path(
        "build/takeover.json"
    ),
) -> None:
    """Kill relays, and see how soon others do their work."""
    configure_logs(Settings(log_level="warning"))
    console = Console(width=None if Console().is_terminal else 110)
    for fact in facts():
        console.print(fact, highlight=False, soft_wrap=True)
    try:
        with serve("postgres") as postgres, serve("redis") as redis:
            found, account = asyncio.run(watch(console, postgres, redis.url, lease_time, kills))
    except (ServerMissing, Broken) as error:
        console.print(f"FAILED {error!r}", style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    _print(console, found, account)
    output.parent.mkdir(parents=True, exist_ok=True)
    written = {"take_overs": [asdict(each) for each in found], "account": asdict(account)}
    output.write_text(json.dumps(written, indent=2) + "\n")
    if max(each.every for each in found) > PROMISED or not account.good:
        raise typer.Exit(1)


async def watch(
    console: Console, postgres: Server, redis_url: str, lease_time: float, kills: int
) -> tuple[list[TakeOver], Account]:
    """A take-over for each kill, and what became of all messages in the end."""
    async with fresh_database(postgres) as database_url:
        settings = Settings(
            broker_url=redis_url,
            broker_prefix=f"bench{secrets.token_hex(4)}",
            database_urls={"bench": database_url},
            lease_time=lease_time,
        )
        found = []
        async with _scene(settings) as (workers, stored, stream, database):
            async with _storing(settings, stored):
                await workers.start()
                for _ in range(kills):
                    await workers.start()
                    # At any moment between two renewals of the leases.
                    await asyncio.sleep(random.uniform(0.0, lease_time))  # noqa: S311
                    found.append(await _take_over(workers, stored, stream))
                    console.print(
                        f"{found[-1].buckets} buckets: the first after {found[-1].first:.2f} s, "
                        f"all after {found[-1].every:.2f} s",
                        highlight=False,
                    )
            await until(_quiet, "an end", settings, database)
            return found, await _account(database, stored, stream)


async def _take_over(workers: Workers, stored: Stored, stream: Stream) -> TakeOver:
    owner = random.choice(workers.owners())  # noqa: S311  # chance, no secret
    had = (await workers.buckets())[owner]
    killed_at = await stream.now()
    workers.kill(owner)
    last = stored.last + 1  # one more may have been under way

    async def all_relayed() -> bool:
        return len(stream.arrivals(had, last)) == len(had)

    await until(all_relayed, "messages of all buckets of the dead one")
    arrivals = stream.arrivals(had, last).values()
    return TakeOver(
        len(had), round(min(arrivals) - killed_at, 3), round(max(arrivals) - killed_at, 3)
    )


@asynccontextmanager
async def _scene(settings: Settings) -> AsyncIterator[tuple[Workers, Stored, Stream, Database]]:
    """All there is but messages and workers; what was started has ended on leaving."""
    database_url = settings.database_url("bench")
    database = Database(database_url, service="bench")
    workers = Workers(
        database,
        {
            "EVENTMESH_BROKER_URL": settings.broker_url,
            "EVENTMESH_BROKER_PREFIX": settings.broker_prefix,
            "EVENTMESH_BENCH_DATABASE_URL": database_url,
            "EVENTMESH_LEASE_TIME": f"{settings.lease_time}",
        },
    )
    stream = f"{settings.broker_prefix}:stream:{Counted.__identity__.name}"
    try:
        await migration.upgrade(database, Base.metadata)
        async with Redis.from_url(settings.broker_url, protocol=2) as client:
            watched = Stream(client, stream)
            watching = asyncio.create_task(watched.watch())
            try:
                yield workers, Stored(), watched, database
            finally:
                watching.cancel()
                await asyncio.wait([watching])
    finally:
        workers.close()
        await database.close()


@asynccontextmanager
async def _storing(settings: Settings, stored: Stored) -> AsyncIterator[None]:
    """Messages come in while the context is open, from this process."""
    stop = asyncio.Event()
    service = make_service()
    service.configure(settings)
    async with service:
        storing = asyncio.create_task(stored.go_on(service, RATE, stop))
        try:
            yield
        finally:
            stop.set()
            await storing


async def _quiet(settings: Settings, database: Database) -> bool:
    """Whether nothing is left in the outbox, nor on the broker."""
    async with database.reading() as connection:
        waiting = await connection.scalar(select(func.count()).select_from(outbox))
    async with open_transport(
        settings.broker_url, SystemClock(), settings.transport_options
    ) as transport:
        stats = await transport.stats(SUBSCRIPTION)
    return not (waiting or stats.ready or stats.delayed or stats.in_flight)


async def _account(database: Database, stored: Stored, stream: Stream) -> Account:
    async with database.reading() as connection:
        effects = Counter(await connection.scalars(select(Effect.number)))
    return Account(
        messages=stored.last,
        lost=len(set(range(1, stored.last + 1)) - set(effects)),
        doubled=effects.total() - len(effects),
        out_of_order=stream.out_of_order(),
        copies=stream.copies(),
    )


def _print(console: Console, found: Sequence[TakeOver], account: Account) -> None:
    for what, took in (
        ("first bucket", [each.first for each in found]),
        ("all buckets", [each.every for each in found]),
    ):
        console.print(
            f"{what}: median {statistics.median(took):.2f} s, worst {max(took):.2f} s of "
            f"{len(took)} kills (promised: {PROMISED:g} s)",
            highlight=False,
        )
    console.print(
        f"{account.messages:,} messages: {account.lost} lost, {account.doubled} doubled in effect, "
        f"{account.out_of_order} out of order; {account.copies} came to Redis twice",
        highlight=False,
    )


if __name__ == "__main__":
    typer.run(main)
