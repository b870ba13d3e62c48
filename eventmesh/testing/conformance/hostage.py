"""A process that receives deliveries and holds them until it is killed; see `observing`."""

from __future__ import annotations

import asyncio
import sys

from eventmesh.clock import SystemClock
from eventmesh.transports.base import Order, Subscription, TransportOptions
from eventmesh.transports.factory import open_transport


async def hold(url: str, options: TransportOptions, count: int, subscription: Subscription) -> None:
    """Receive `count` deliveries, print `holding`, and never settle them."""
    async with (
        open_transport(url, SystemClock(), options) as transport,
        transport.consume(subscription, prefetch=count) as consumer,
    ):
        held = 0
        while held < count:
            held += len(await consumer.receive(count - held))
        sys.stdout.write("holding\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    _, _url, _prefix, _visibility, _count, _order, _name, *_messages = sys.argv
    asyncio.run(
        hold(
            _url,
            TransportOptions(visibility_timeout=float(_visibility), prefix=_prefix),
            int(_count),
            Subscription(_name, tuple(_messages), Order() if _order == "ordered" else None),
        )
    )
