"""What type checkers make of a service that is written with EventMesh's public API.

`make check` runs mypy and pyright over this file, both strict; nothing here is executed. A line
that must be an error says so to both, and fails the check once it no longer is one: both report
comments that silence nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from eventmesh import (
    Command,
    Depends,
    Envelope,
    Event,
    Publisher,
    Reject,
    Retry,
    Service,
    Settings,
    Transaction,
    constant,
    exponential,
)
from eventmesh.compat import Breaking, Compatible, Unknown, compare


class PlaceOrder(Command, name="orders.place_order", version=1, key="order_id"):
    order_id: int


class OrderPlaced(Event, name="orders.order_placed", version=2, key="order_id"):
    order_id: int
    currency: str = "EUR"


@OrderPlaced.upcaster(from_version=1)
def add_currency(data: dict[str, object]) -> dict[str, object]:
    return data | {"currency": "EUR"}


class OrderRefused(Event, name="orders.order_refused", version=1):
    order_id: int
    reason: str


service = Service("orders", shares_database_with=("billing",), ordered_outbox=True)
service.configure(Settings(broker_url="memory://"))

# Publishers know their message.

placed = assert_type(service.publisher(OrderPlaced), Publisher[OrderPlaced])
commands = assert_type(service.publisher(PlaceOrder), Publisher[PlaceOrder])


async def publish() -> None:
    async with service:
        await placed.publish(OrderPlaced(order_id=1))
        await placed.publish(OrderPlaced(order_id=1), delay="10m")
        await commands.publish(PlaceOrder(order_id=1), delay=2.5)
        await placed.publish(PlaceOrder(order_id=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        OrderPlaced(order_id=1, colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# Handlers keep their own types: a decorated function can be called as it is written.


@service.subscriber(PlaceOrder, retry=Retry(attempts=8, backoff=exponential("200ms", cap="1m")))
async def place(command: PlaceOrder, tx: Transaction) -> OrderPlaced | OrderRefused:
    if command.order_id < 0:
        raise Reject("an order's id is positive")
    assert_type(tx.session, AsyncSession)
    tx.publish(OrderPlaced(order_id=command.order_id), delay="1h")
    tx.send(PlaceOrder(order_id=command.order_id + 1))
    tx.publish(PlaceOrder(order_id=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tx.send(OrderPlaced(order_id=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return OrderRefused(order_id=command.order_id, reason="closed")


async def the_clock() -> AsyncIterator[float]:
    yield 0.0


@service.subscriber(OrderPlaced, OrderRefused, concurrency=4, retry=Retry(backoff=constant("1s")))
async def note(
    event: OrderPlaced | OrderRefused,
    session: AsyncSession,
    envelope: Envelope,
    now: Annotated[float, Depends(the_clock)],
) -> Sequence[OrderPlaced]:
    assert_type(envelope.id, str)
    return [OrderPlaced(order_id=event.order_id)]


# A handler that takes a list is called once for the messages of a group.


@service.subscriber(OrderPlaced, OrderRefused)
async def book(events: list[OrderPlaced | OrderRefused], tx: Transaction) -> list[OrderPlaced]:
    for event in events:
        tx.publish(OrderPlaced(order_id=event.order_id), cause=event)
        tx.send(PlaceOrder(order_id=event.order_id), cause=event, delay="1m")
    tx.publish(OrderPlaced(order_id=1), cause="event")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return []


@service.subscriber(OrderPlaced)
async def count(events: list[OrderPlaced]) -> None:
    assert_type(events[0].order_id, int)


async def call_as_written(tx: Transaction, session: AsyncSession, envelope: Envelope) -> None:
    assert_type(await place(PlaceOrder(order_id=1), tx), OrderPlaced | OrderRefused)
    await place(OrderPlaced(order_id=1), tx)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await note(OrderPlaced(order_id=1), session, envelope, 0.0)
    assert_type(await book([OrderPlaced(order_id=1)], tx), list[OrderPlaced])
    await count(OrderPlaced(order_id=1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Transactions outside handlers, and sessions of an application's own.


async def outside(session: AsyncSession, plain: Session) -> None:
    async with service.transaction() as tx:
        assert_type(tx, Transaction)
        tx.publish(OrderPlaced(order_id=1))
    assert_type(service.join(session), Transaction)
    service.join(plain).publish(OrderPlaced(order_id=1))
    service.join("session")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with service.relay():
        pass


# Two schemas can be compared by themselves.


def schemas() -> object:
    match compare({"type": "integer"}, {"type": "number"}):
        case Breaking(witness=document):
            return document
        case verdict:
            assert_type(verdict, Compatible | Unknown)
            return verdict.changes
