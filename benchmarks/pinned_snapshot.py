"""The relay while another transaction pins what PostgreSQL may clear away: `python -m
benchmarks.pinned_snapshot`.

A forgotten transaction is open all the time, so that every row that was relayed and deleted stays
in the table. Meanwhile rows come in at a steady rate. The exit code is 1 when the relay falls
behind. All of it takes up to a minute more than the minutes asked for, for servers are started and
ended: whoever limits its time must leave it that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console
from sqlalchemy import text

from benchmarks.contenders_redis import RedisContenders
from benchmarks.effects_programs import migrated
from benchmarks.messages import make_envelopes
from benchmarks.ours import Ours
from eventmesh.clock import SystemClock
from eventmesh.observability.logs import configure_logs
from eventmesh.persistence import outbox
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.testing.servers import Server, fresh_database, serve
from eventmesh.wire.envelope import Envelope

GROUP = 100
"""Messages a transaction."""

EVERY = 10.0
"""Seconds between two points of the curve."""


@dataclass(frozen=True)
class Point:
    """After so many seconds: messages that came in and went out a second since the point before,
    how many wait, and how many rows are dead."""

    seconds: float
    stored: float
    relayed: float
    waiting: int
    dead: int


def main(
    minutes: Annotated[float, typer.Option(min=0.2, help="How long.")] = 10.0,
    rate: Annotated[int, typer.Option(min=GROUP, help="Messages a second.")] = 2_000,
    output: Annotated[Path, typer.Option(help="Where the points go.")] = Path(
        "build/pinned_snapshot.json"
    ),
) -> None:
    """Watch the relay's rate."""
    configure_logs(Settings(log_level="warning"))
    console = Console()
    with serve("postgres") as postgres, serve("redis") as redis:
        console.print(f"{rate:,} messages a second for {minutes:g} minutes", highlight=False)
        points = asyncio.run(curve(console, postgres, redis.url, minutes * 60, rate))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")
    if points[-1].waiting > rate:
        raise typer.Exit(1)


async def curve(
    console: Console, postgres: Server, url: str, seconds: float, rate: int
) -> Sequence[Point]:
    """A point every EVERY seconds."""
    async with fresh_database(postgres) as database_url, RedisContenders(url).ours()() as ours:
        if not isinstance(ours, Ours):
            raise TypeError(ours)
        database = await migrated(database_url)
        relay = Relay("bench", database, ours.transport, SystemClock(), 3.0)
        stop = asyncio.Event()
        try:
            async with database.engine.connect() as forgotten, asyncio.TaskGroup() as tasks:
                await forgotten.execution_options(isolation_level="REPEATABLE READ")
                await forgotten.execute(text("SELECT count(*) FROM eventmesh_outbox"))
                producer = _Producer(database, relay, rate)
                tasks.create_task(relay.run(stop))
                tasks.create_task(producer.run(stop))
                points = await _watch(console, database, relay, producer, ours.place, seconds)
                stop.set()
        finally:
            await database.close()
    return points


async def _watch(
    console: Console,
    database: Database,
    relay: Relay,
    producer: _Producer,
    place: Any,
    until: float,
) -> list[Point]:
    began = last = perf_counter()
    stored = relayed = 0
    points: list[Point] = []
    while last - began < until:
        await asyncio.sleep(EVERY)
        now = perf_counter()
        await place.client.xtrim(place.stream, maxlen=0)  # what came out is of no use
        async with database.engine.connect() as connection:
            dead = await connection.scalar(
                text("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = :table"),
                {"table": "eventmesh_outbox"},
            )
        point = Point(
            round(now - began, 1),
            round((producer.stored - stored) / (now - last), 1),
            round((relay.vitals.relayed - relayed) / (now - last), 1),
            producer.stored - relay.vitals.relayed,
            dead or 0,
        )
        last, stored, relayed = now, producer.stored, relay.vitals.relayed
        points.append(point)
        console.print(
            f"{point.seconds:6.0f} s: {point.stored:8,.0f}/s in, {point.relayed:8,.0f}/s out, "
            f"{point.waiting:8,} waiting, {point.dead:10,} dead rows",
            highlight=False,
        )
    return points


class _Producer:
    """Stores messages at a rate, and wakes the relay, as the transactions of a service do."""

    def __init__(self, database: Database, relay: Relay, rate: int) -> None:
        self.stored = 0
        self._database = database
        self._relay = relay
        self._rate = rate
        self._clock = SystemClock()
        self._made = make_envelopes(GROUP)

    async def run(self, stop: asyncio.Event) -> None:
        began = perf_counter()
        while not stop.is_set():
            await asyncio.sleep(max(0.0, began + self.stored / self._rate - perf_counter()))
            messages = [
                Outgoing(Envelope({**each.attributes, "id": self._clock.new_id()}, each.data))
                for each in self._made
            ]
            async with self._database.connection() as connection:
                await connection.run_sync(outbox.store, messages)
            self.stored += GROUP
            self._relay.wake()


if __name__ == "__main__":
    typer.run(main)
