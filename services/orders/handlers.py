"""The handlers of the service orders, beside its saga."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh import Service, Transaction
from services.orders.contracts import (
    OrderCancelled,
    OrderClosed,
    OrderPlaced,
    OrderShipped,
    PlaceOrder,
)
from services.orders.models import Base, Order

service = Service("orders", metadata=Base.metadata)
service.publisher(PlaceOrder)  # a shop's front end, or the demo, sends it


@service.subscriber(PlaceOrder)
async def place_order(command: PlaceOrder, tx: Transaction) -> OrderPlaced:
    """Store the order; the event starts the saga that fulfils it."""
    tx.session.add(
        Order(
            order_id=command.order_id,
            card=command.card,
            sku=command.sku,
            quantity=command.quantity,
            cents=round(command.amount * 100),
            placed_at=datetime.now(UTC),
        )
    )
    return OrderPlaced(**command.model_dump())


@service.subscriber(OrderClosed)
async def close_order(event: OrderClosed, session: AsyncSession) -> None:
    """Record that the order was completed."""
    await _end(session, event.order_id, "closed", None)


@service.subscriber(OrderCancelled)
async def cancel_order(event: OrderCancelled, session: AsyncSession) -> None:
    """Record that the order was cancelled, and why."""
    await _end(session, event.order_id, "cancelled", event.reason)


@service.subscriber(OrderShipped)
async def note_shipment(event: OrderShipped, session: AsyncSession) -> None:
    """Choreography: orders reacts to an event of shipping without being part of a saga step."""
    await session.execute(
        update(Order)
        .where(Order.order_id == event.order_id)
        .values(tracking_number=event.tracking_number)
        .execution_options(synchronize_session=False)
    )


async def _end(session: AsyncSession, order_id: UUID, status: str, reason: str | None) -> None:
    await session.execute(
        update(Order)
        .where(Order.order_id == order_id)
        .values(status=status, reason=reason, ended_at=datetime.now(UTC), endings=Order.endings + 1)
        .execution_options(synchronize_session=False)
    )
