"""A service with everything that the dashboard shows, and a browser's way to its pages."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from html import unescape
from typing import Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel

from eventmesh import (
    Command,
    Event,
    Reject,
    Retry,
    Saga,
    Service,
    Transaction,
    constant,
)
from eventmesh.dashboard import Dashboard
from eventmesh.transports.base import Transport, publish_or_raise
from eventmesh.wire.envelope import Envelope, seal
from tests.support.running_meshes import CLOCK, RunningMesh

ORIGIN = "http://127.0.0.1:8088"
NASTY = "<script>alert(1)</script>\x1b[2J\u202e&\"'"
"""HTML, an escape sequence of a terminal, and a change of direction."""


class Bill(Command, name="shop.bill", version=1, key="customer"):
    customer: str
    cents: int


class Billed(Event, name="shop.billed", version=1, key="customer"):
    customer: str
    cents: int


class Viewed(Event, name="web.viewed", version=1):
    page: str


class Ordered(Event, name="shop.ordered", version=1, key="order"):
    order: str


class Pack(Command, name="depot.pack", version=1, key="order"):
    order: str


class Packed(Event, name="depot.packed", version=1, key="order"):
    order: str


class Unpack(Command, name="depot.unpack", version=1, key="order"):
    order: str


class Unpacked(Event, name="depot.unpacked", version=1, key="order"):
    order: str


class Send(Command, name="depot.send", version=1, key="order"):
    order: str


class Sent(Event, name="depot.sent", version=1, key="order"):
    order: str


class Order(BaseModel):
    order: str


def make_saga() -> Saga[Order]:
    """Waits for a depot that there is not."""
    saga = Saga("shop.order", Order, key=lambda state: state.order)

    @saga.starts
    def begin(event: Ordered) -> Order:
        return Order(order=event.order)

    @saga.step(ok=Packed, timeout="1h")
    def pack(state: Order) -> Pack:
        return Pack(order=state.order)

    @pack.undo(ok=Unpacked)
    def unpack(state: Order) -> Unpack:
        return Unpack(order=state.order)

    @saga.pivot(ok=Sent, timeout="1h")
    def send(state: Order) -> Send:
        return Send(order=state.order)

    saga.flow(pack >> send)
    return saga


def ordered(order: str) -> Envelope:
    return seal(Ordered(order=order), source="shop", clock=CLOCK)


def make_service() -> Service:
    """`shop.bill` rejects amounts below 0, and fails at once for those above 1,000."""
    service = Service("shop")
    service.publisher(Billed)

    @service.subscriber(retry=Retry(attempts=1, backoff=constant("1h")))
    async def bill(command: Bill, tx: Transaction) -> Billed:
        if command.cents < 0:
            raise Reject(f"negative: {command.customer}")
        if command.cents > 1_000:
            raise ValueError("too much")
        return Billed(customer=command.customer, cents=command.cents)

    @service.subscriber()
    async def count(event: Viewed) -> None: ...

    service.include(make_saga())
    return service


def bills(*cents: int, customer: str = "ada") -> list[Envelope]:
    return [
        seal(Bill(customer=customer, cents=each), source="/test", clock=CLOCK) for each in cents
    ]


class ServedMesh(RunningMesh):
    """A service on a broker, which has its subscriptions, and on a database."""

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Transport]:
        async with super().broker() as transport:
            await transport.declare(list(self.subscriptions.values()))
            yield transport

    async def dead_letter(self, transport: Transport, envelopes: Iterable[Envelope]) -> None:
        """Publish messages, and return once `shop.bill` has dead-lettered all of them."""
        sent = list(envelopes)
        subscription = self.service.handlers["shop.bill"].subscription
        before = (await transport.stats(subscription)).dead
        await publish_or_raise(transport, sent)
        async with self.worker(transport), asyncio.timeout(60):
            while (await transport.stats(subscription)).dead < before + len(sent):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


class Browser:
    """Sends what a browser would send, and keeps its cookie."""

    def __init__(self, app: Any, *, origin: str = ORIGIN, client: str = "127.0.0.1") -> None:
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(client, 50_000)), base_url=origin
        )
        self.origin = origin

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.http.get(path, params=query or None)

    async def text(self, path: str, **query: Any) -> str:
        """The page, which must be there."""
        response = await self.get(path, **query)
        assert response.status_code == 200, response.text
        return response.text

    async def token(self) -> str:
        """A token for the forms of this browser."""
        found = re.search(r'data-token="([0-9a-f]+)"', await self.text("/"))
        assert found
        return found[1]

    async def post(
        self, path: str, fields: dict[str, Any], *, follow: bool = True, **headers: str
    ) -> httpx.Response:
        """Send a form as it stands on a page of ours."""
        given = {"token": await self.token(), "reason": "a test", **fields}
        return await self.http.post(
            path,
            data={name: value for name, value in given.items() if value is not None},
            headers={"origin": self.origin, **headers},
            follow_redirects=follow,
        )

    async def act(self, fields: dict[str, Any]) -> str:
        """Act on the dead letters of a form, and return the last page about it."""
        response = await self.post("/dead-letters/act", fields)
        async with asyncio.timeout(60):
            while "data-finished" not in response.text:
                response = await self.http.get(response.url)
        return response.text


def hidden_field(page: str, name: str) -> str:
    """The value of a hidden field of the page's forms."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return unescape(found[1])


@asynccontextmanager
async def browsing(app: Dashboard, **options: Any) -> AsyncIterator[Browser]:
    """A browser, once the mesh was measured for the first time."""
    async with app:
        await app._sampler.latest(60)
        browser = Browser(app, **options)
        async with browser.http:
            yield browser


def is_own(url: str) -> bool:
    """Whether the address leads to the dashboard itself."""
    return not urlsplit(url).netloc
