"""EventMesh as a contender: its transport to publish, a whole worker in this process to consume."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from benchmarks.measure import Handle, Place
from benchmarks.messages import OrderPlaced
from eventmesh import Service
from eventmesh.cli.garbage import YOUNG
from eventmesh.clock import SystemClock
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.base import Subscription, Transport, publish_or_raise
from eventmesh.transports.factory import open_transport
from eventmesh.wire.envelope import Envelope

SUBSCRIPTION = Subscription("bench.handle", (OrderPlaced.__identity__.name,))


@dataclass
class Ours:
    """A service with one plain handler, at the default settings."""

    place: Place
    transport: Transport
    settings: Settings

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        await publish_or_raise(self.transport, envelopes)

    async def consume(self, handle: Handle, until: asyncio.Event) -> None:
        service = Service("bench")

        async def take(event: OrderPlaced) -> None:
            handle(event)

        service.subscriber(name="handle")(take)
        with collecting_as_a_worker():
            await Worker([service], self.transport, self.settings, SystemClock()).run(until)


@contextmanager
def collecting_as_a_worker() -> Iterator[None]:
    """Look for garbage as rarely as `eventmesh worker` does, while this lasts."""
    usual = gc.get_threshold()
    gc.set_threshold(YOUNG, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@asynccontextmanager
async def ours(url: str, prefix: str, place: Place) -> AsyncIterator[Ours]:
    """EventMesh on this broker, its subscription declared under `prefix`."""
    settings = Settings(broker_url=url, broker_prefix=prefix)
    async with open_transport(url, SystemClock(), settings.transport_options) as transport:
        await transport.declare([SUBSCRIPTION])
        yield Ours(place, transport, settings)
