"""What type checkers make of a reaction: see `public_api` for how this file is checked."""

from __future__ import annotations

from typing import assert_type

from pydantic import BaseModel

from eventmesh import Command, Event, Service, Transaction


class OrderPlaced(Event, name="orders.order_placed", version=1, key="order_id"):
    order_id: int


class OrderCancelled(Event, name="orders.order_cancelled", version=1, key="order_id"):
    order_id: int


class PlaceOrder(Command, name="orders.place_order", version=1, key="order_id"):
    order_id: int


class Points(BaseModel):
    number: int


service = Service("points")


@service.reaction(OrderPlaced, undone_by=OrderCancelled)
async def collect(event: OrderPlaced, tx: Transaction) -> Points:
    return Points(number=event.order_id)


@collect.undo
async def give_back(event: OrderCancelled, points: Points, tx: Transaction) -> None: ...


@collect.undo  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def takes_another_result(event: OrderCancelled, points: int, tx: Transaction) -> None: ...


@collect.undo  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def takes_another_event(event: OrderPlaced, points: Points, tx: Transaction) -> None: ...


@service.reaction(OrderPlaced, undone_by=OrderCancelled)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def reacts_to_another(event: OrderCancelled, tx: Transaction) -> None: ...


service.reaction(PlaceOrder, undone_by=OrderCancelled)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


async def unit_test(tx: Transaction) -> None:
    assert_type(await collect(OrderPlaced(order_id=1), tx), Points)
    await give_back(OrderCancelled(order_id=1), Points(number=1), tx)
