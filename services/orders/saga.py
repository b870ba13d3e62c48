"""The saga of an order: reserve stock and capture the payment, ship; or undo what was done.

Steps that can be undone come first; shipping cannot be undone, so it is the pivot.
"""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel

from eventmesh import Saga, SagaFailure
from services.orders.contracts import (
    CapturePayment,
    OrderCancelled,
    OrderClosed,
    OrderPlaced,
    OrderShipped,
    OutOfStock,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    RefundPayment,
    ReleaseStock,
    ReserveStock,
    ShipmentRefused,
    ShipOrder,
    StockReleased,
    StockReserved,
)


class OrderState(BaseModel):
    """What the steps need to know of the order."""

    order_id: UUID
    card: str
    sku: str
    quantity: int
    amount: Decimal


fulfil = Saga("orders.fulfil_order", OrderState)


@fulfil.starts
def begin(event: OrderPlaced) -> OrderState:
    return OrderState(**event.model_dump())


@fulfil.step(ok=StockReserved, failed=OutOfStock, timeout="10m")
def reserve(state: OrderState) -> ReserveStock:
    return ReserveStock(order_id=state.order_id, sku=state.sku, quantity=state.quantity)


@reserve.undo(ok=StockReleased)
def release(state: OrderState) -> ReleaseStock:
    return ReleaseStock(order_id=state.order_id)


@fulfil.step(ok=PaymentCaptured, failed=PaymentDeclined, timeout="10m")
def capture(state: OrderState) -> CapturePayment:
    return CapturePayment(order_id=state.order_id, card=state.card, amount=state.amount)


@capture.undo(ok=PaymentRefunded)
def refund(state: OrderState, reply: PaymentCaptured) -> RefundPayment:
    return RefundPayment(order_id=state.order_id, payment_id=reply.payment_id)


@fulfil.pivot(ok=OrderShipped, failed=ShipmentRefused, timeout="2d")
def ship(state: OrderState) -> ShipOrder:
    return ShipOrder(order_id=state.order_id, quantity=state.quantity)


fulfil.flow((reserve & capture) >> ship)


@fulfil.completed
def closed(state: OrderState) -> OrderClosed:
    return OrderClosed(order_id=state.order_id)


@fulfil.undone
def cancelled(
    state: OrderState, failure: OutOfStock | PaymentDeclined | ShipmentRefused | SagaFailure
) -> OrderCancelled:
    reason = "out of stock" if isinstance(failure, OutOfStock) else failure.reason
    return OrderCancelled(order_id=state.order_id, reason=reason)
