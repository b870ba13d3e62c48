"""The saga of an order: reserve stock, capture the payment, ship; or undo what was done."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from pydantic import BaseModel

from eventmesh import Saga, pivot, step
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


class FulfilOrder(Saga[OrderState], name="orders.fulfil_order", started_by=OrderPlaced):
    """Steps that can be undone come first; shipping cannot be undone, so it is the pivot."""

    @staticmethod
    def begin(event: OrderPlaced) -> OrderState:
        return OrderState(**event.model_dump())

    @step(ok=StockReserved, failed=OutOfStock)
    def reserve(state: OrderState) -> ReserveStock:
        return ReserveStock(order_id=state.order_id, sku=state.sku, quantity=state.quantity)

    @reserve.undo(ok=StockReleased)
    def release(state: OrderState, reply: StockReserved) -> ReleaseStock:
        return ReleaseStock(order_id=state.order_id)

    @step(ok=PaymentCaptured, failed=PaymentDeclined)
    def capture(state: OrderState) -> CapturePayment:
        return CapturePayment(order_id=state.order_id, card=state.card, amount=state.amount)

    @capture.undo(ok=PaymentRefunded)
    def refund(state: OrderState, reply: PaymentCaptured) -> RefundPayment:
        return RefundPayment(order_id=state.order_id, payment_id=reply.payment_id)

    @pivot(ok=OrderShipped, failed=ShipmentRefused)
    def ship(state: OrderState) -> ShipOrder:
        return ShipOrder(order_id=state.order_id, quantity=state.quantity)

    flow = reserve >> capture >> ship

    @staticmethod
    def completed(state: OrderState) -> OrderClosed:
        return OrderClosed(order_id=state.order_id)

    @staticmethod
    def undone(
        state: OrderState, failure: OutOfStock | PaymentDeclined | ShipmentRefused
    ) -> OrderCancelled:
        reason = "out of stock" if isinstance(failure, OutOfStock) else failure.reason
        return OrderCancelled(order_id=state.order_id, reason=reason)
