"""The programs whose processes are looked at: `python -m benchmarks.programs faststream URL`, and
the service that `eventmesh worker` runs."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from benchmarks.messages import OrderPlaced
from eventmesh import Service
from eventmesh.persistence.transaction import Transaction

SUBSCRIPTIONS = 5
COUNTED = 50_000
"""Messages after which the service says how many it has handled."""

SERVICE_MODULE = "from benchmarks.programs import make_service\n\nservice = make_service({})\n"


def make_service(subscriptions: int) -> Service:
    """So many subscriptions: one counts, the others take part in transactions."""
    service, count = Service("bench"), 0

    @service.subscriber()
    async def count_orders(event: OrderPlaced) -> None:
        nonlocal count
        count += 1
        if count % COUNTED == 0:
            print(f"handled {count}", flush=True)

    async def handle(event: OrderPlaced, tx: Transaction) -> None:
        """Does nothing, in a transaction."""

    for number in range(1, subscriptions):
        service.subscriber(name=f"handle_{number}")(handle)
    return service


async def rest_on_faststream(url: str) -> None:
    """FastStream with as many subscribers, each with a stream or queue of its own."""
    broker: Any
    if url.startswith("redis"):
        from faststream.redis import RedisBroker, StreamSub

        broker = RedisBroker(url, logger=None)
        places = [
            {"stream": StreamSub(f"rest-{n}", group="bench", consumer="one")}
            for n in range(SUBSCRIPTIONS)
        ]
    else:
        from faststream.rabbit import RabbitBroker

        broker = RabbitBroker(url, logger=None)
        places = [{"queue": f"rest-{number}"} for number in range(SUBSCRIPTIONS)]

    async def handle(event: OrderPlaced) -> None:
        """Does nothing."""

    for place in places:
        broker.subscriber(**place)(handle)
    async with broker:
        await broker.start()
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(rest_on_faststream(sys.argv[2]))
