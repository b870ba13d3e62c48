"""A publisher and a consumer that behave like a relay and a worker, and record what they did."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable
from eventmesh.runtime.backoff import Reconnect
from eventmesh.transports.base import (
    Consumer,
    Delivery,
    Order,
    Subscription,
    Transport,
    TransportOptions,
    publish_or_raise,
)
from eventmesh.transports.outcome import DONE
from eventmesh.transports.redis.transport import RedisTransport
from eventmesh.wire.envelope import Envelope
from tests.integration.redis_nodes import TIMEOUT_SECONDS

CLOCK = SystemClock()
PAID = Subscription("orders.note_payment", ("payments.paid",))
IN_ORDER = Subscription("orders.note_payment", ("payments.paid",), Order())


def envelopes(count: int, name: str = "payments.paid", **attributes: str) -> list[Envelope]:
    """New messages."""
    return [
        Envelope({"id": CLOCK.new_id(), "type": name, **attributes}, b"%d" % number)
        for number in range(count)
    ]


@asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[RedisTransport]:
    """A transport with its own prefix, and a visibility timeout that ends in no test which does not
    ask for a shorter one: a test process that stands still for a second loses no message."""
    options = {"visibility_timeout": 60.0} | options
    prefix = f"t{secrets.token_hex(5)}"
    transport = RedisTransport(url, CLOCK, TransportOptions(prefix=prefix, **options))
    try:
        await transport.connect()
        yield transport
    finally:
        await transport.close()


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Receive exactly this number of deliveries."""
    got: list[Delivery] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(got) < count:
            got += await consumer.receive(count - len(got))
    return got


@dataclass
class Traffic:
    """Which messages were confirmed, how often each was handled, and which errors occurred. The
    messages have no key, so that those of an ordered subscription are all in one order."""

    transport: Transport
    subscription: Subscription = PAID
    published: list[str] = field(default_factory=list)
    handled: Counter[str] = field(default_factory=Counter)
    published_at: dict[str, float] = field(default_factory=dict)
    handled_at: dict[str, float] = field(default_factory=dict)
    publishing_errors: list[str] = field(default_factory=list)
    consuming_errors: list[str] = field(default_factory=list)
    stop_publishing: asyncio.Event = field(default_factory=asyncio.Event)

    async def publish(self, batch: Sequence[Envelope]) -> None:
        """Publish these, with retries until all are confirmed."""
        reconnect = Reconnect(CLOCK)
        while True:
            try:
                await publish_or_raise(self.transport, batch)
                break
            except Unreachable as error:
                self.publishing_errors.append(str(error))
                await reconnect.wait()
        self.published += [envelope.id for envelope in batch]
        self.published_at |= {envelope.id: time.monotonic() for envelope in batch}

    async def keep_publishing(self) -> None:
        while not self.stop_publishing.is_set():
            await self.publish(envelopes(5))
            await asyncio.sleep(0.05)

    async def keep_consuming(self) -> None:
        reconnect = Reconnect(CLOCK)
        while True:
            try:
                async with self.transport.consume(self.subscription, prefetch=50) as consumer:
                    while True:
                        deliveries = await consumer.receive(10)
                        for delivery in deliveries:
                            self.handled[delivery.envelope.id] += 1
                            self.handled_at[delivery.envelope.id] = time.monotonic()
                        await consumer.settle([(delivery, DONE) for delivery in deliveries])
                        reconnect.succeeded()
            except Unreachable as error:
                self.consuming_errors.append(str(error))
                await reconnect.wait()

    def unhandled(self) -> set[str]:
        return set(self.published) - set(self.handled)

    async def until_all_is_handled(self, within: float = TIMEOUT_SECONDS) -> None:
        deadline = time.monotonic() + within
        while self.unhandled():
            assert time.monotonic() < deadline, (
                f"{len(self.unhandled())} of {len(self.published)} not handled; "
                f"{self.consuming_errors[-3:]}"
            )
            await asyncio.sleep(0.01)
        if self.subscription.order is not None:
            published = set(self.published)
            assert [each for each in self.handled if each in published] == self.published


@asynccontextmanager
async def flowing(
    transport: Transport, subscription: Subscription = PAID
) -> AsyncIterator[Traffic]:
    """Publish and consume messages while the context is open."""
    traffic = Traffic(transport, subscription)
    await transport.declare([subscription])
    async with running(traffic.keep_publishing(), traffic.keep_consuming()):
        yield traffic


@asynccontextmanager
async def running(*work: object) -> AsyncIterator[None]:
    """Run these while the context is open; if one raises, the test fails with its error."""
    tasks = [asyncio.ensure_future(each) for each in work]  # type: ignore[call-overload]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        # Again and again: redis-py may lose a cancellation while it closes connections of a cluster
        # (its `gather` raises the error of one of them instead). Not soon: what is cancelled while
        # it closes connections after a cancellation leaves them open.
        while unfinished := [task for task in tasks if not task.done()]:
            for task in unfinished:
                task.cancel()
            await asyncio.wait(unfinished, timeout=10.0)
        await asyncio.gather(*tasks, return_exceptions=True)
