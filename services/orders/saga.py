"""The saga of an order: reserve stock and capture the payment, ship; or undo what was done.

Stock and payment do not wait for each other, so their steps run side by side. A person approves
large orders; everybody else's go on at once. Steps that can be undone come first; shipping cannot
be undone, so it is the pivot.

After a time-out nobody knows whether the step was done. Stock is released all the same, because
inventory accepts a release of what it never reserved. A refund needs the id of the payment, which
only the late answer brings, so it is sent when that comes.
"""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel

from eventmesh import Retry, Saga, SagaFailure, exponential
from services.drill import step_timeout
from services.orders.contracts import (
    CapturePayment,
    OrderApproved,
    OrderCancelled,
    OrderClosed,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    OutOfStock,
    PaymentCaptured,
    PaymentDeclined,
    PaymentRefunded,
    RefundPayment,
    ReleaseStock,
    RequestApproval,
    ReserveStock,
    ShipmentRefused,
    ShipOrder,
    StockReleased,
    StockReserved,
)

LARGE = Decimal(100)
"""From this amount on, a person must approve an order."""


class OrderState(BaseModel):
    """What the steps need to know of the order."""

    order_id: UUID
    card: str
    sku: str
    quantity: int
    amount: Decimal


def is_large(state: OrderState) -> bool:
    return state.amount >= LARGE


fulfil = Saga("orders.fulfil_order", OrderState, key=lambda state: state.order_id)


@fulfil.starts
def begin(event: OrderPlaced) -> OrderState:
    return OrderState(**event.model_dump())


@fulfil.step(
    ok=StockReserved,
    failed=OutOfStock,
    timeout=step_timeout("10m"),
    retry=Retry(attempts=3, backoff=exponential("500ms")),  # a delivery may be under way
)
def reserve(state: OrderState) -> ReserveStock:
    return ReserveStock(order_id=state.order_id, sku=state.sku, quantity=state.quantity)


@reserve.undo(ok=StockReleased)
def release(state: OrderState) -> ReleaseStock:
    return ReleaseStock(order_id=state.order_id)


@fulfil.step(ok=PaymentCaptured, failed=PaymentDeclined, timeout=step_timeout("10m"))
def capture(state: OrderState) -> CapturePayment:
    return CapturePayment(order_id=state.order_id, card=state.card, amount=state.amount)


@capture.undo(ok=PaymentRefunded)
def refund(state: OrderState, reply: PaymentCaptured) -> RefundPayment:
    return RefundPayment(order_id=state.order_id, payment_id=reply.payment_id)


@fulfil.step(
    ok=OrderApproved,
    failed=OrderRejected,
    when=is_large,
    timeout="2d",
    correlate=lambda decision: decision.order_id,  # whoever decides knows nothing of sagas
    no_undo="a decision has no effect of its own",
)
def approve(state: OrderState) -> RequestApproval:
    return RequestApproval(order_id=state.order_id, amount=state.amount)


@fulfil.pivot(ok=OrderShipped, failed=ShipmentRefused, timeout="2d")
def ship(state: OrderState) -> ShipOrder:
    return ShipOrder(order_id=state.order_id, quantity=state.quantity)


fulfil.flow((reserve & capture) >> approve >> ship)


@fulfil.completed
def closed(state: OrderState) -> OrderClosed:
    return OrderClosed(order_id=state.order_id)


@fulfil.undone
def cancelled(
    state: OrderState,
    failure: OutOfStock | PaymentDeclined | OrderRejected | ShipmentRefused | SagaFailure,
) -> OrderCancelled:
    reason = "out of stock" if isinstance(failure, OutOfStock) else failure.reason
    return OrderCancelled(order_id=state.order_id, reason=reason)
