"""Masters of a Redis Cluster are killed under load: `python -m benchmarks.redis_cluster --ordered`.

The run is that of `benchmarks.rabbitmq_cluster`. The node that is killed is the master of the slot
of EventMesh's prefix, twice: the second time, it is the replica that took over from the first.
Publishing waits until a replica has each message, by `wait_replicas=1`: without that, Redis may
lose what it has confirmed.

With `--slots 6`, the prefix is spread over six slots, two of each master. Then the other masters
have a replica each, too. The one that is killed has the first of the slots, and one more.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from benchmarks.rabbitmq_cluster import (
    Plan,
    Shop,
    Verdict,
    Victims,
    carry_out,
    new_console,
    temporary_folder,
)
from benchmarks.redis_cluster_nodes import running_cluster


async def run_on_redis(plan: Plan, slots: int) -> Verdict:
    """The whole run, on a cluster of its own."""
    with temporary_folder() as folder:
        async with running_cluster(plan.image, replicas_of_all=slots > 1) as cluster:
            victims = Victims(
                ("master of the prefix", "was its replica"),
                [cluster.master, cluster.master],
                cluster.whole,
            )
            broker = f"Redis Cluster, three masters, the prefix in {slots} slot(s)"
            return await plan.run_on(broker, f"{cluster.url}&slots={slots}", folder, victims)


def main(
    messages: Annotated[int, typer.Option(min=1_000, help="Events published.")] = 20_000,
    rate: Annotated[float, typer.Option(min=1, help="Events published a second.")] = 400,
    keys: Annotated[int, typer.Option(min=1, help="Customers they are about, in turn.")] = 200,
    down: Annotated[float, typer.Option(min=0, help="Seconds a killed node stays down.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Processes of the ledger's worker.")] = 1,
    image: Annotated[
        str, typer.Option(envvar="EVENTMESH_TEST_REDIS_IMAGE", help="Of Redis 7 or later.")
    ] = "redis:8",
    database_url: Annotated[
        str, typer.Option(help="An empty database for the ledger; else a SQLite file.")
    ] = "",
    patience: Annotated[float, typer.Option(min=1, help="Seconds the whole may take.")] = 600,
    ordered: Annotated[bool, typer.Option("--ordered", help="Handle in order.")] = False,
    slots: Annotated[int, typer.Option(min=1, help="Slots the prefix is spread over.")] = 1,
) -> None:
    """Kill masters of a Redis Cluster under load, and count what the subscriber has in the end."""
    plan = Plan(
        new_console(), Shop(messages, keys, rate), image, database_url, down, workers, ordered
    )
    carry_out(plan, partial(run_on_redis, slots=slots), patience)


if __name__ == "__main__":
    typer.run(main)
