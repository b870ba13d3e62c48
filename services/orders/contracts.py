"""The messages that orders owns, and its own models of other services' messages."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from eventmesh import Command, Event

# Owned


class PlaceOrder(Command, name="orders.place_order", version=1, key="order_id"):
    order_id: UUID
    card: str
    sku: str
    quantity: int
    amount: Decimal


class OrderPlaced(Event, name="orders.order_placed", version=1, key="order_id"):
    order_id: UUID
    card: str
    sku: str
    quantity: int
    amount: Decimal


class RequestApproval(Command, name="orders.request_approval", version=1, key="order_id"):
    """Asks a person to approve a large order; the saga sends it to its own service."""

    order_id: UUID
    amount: Decimal


class OrderApproved(Event, name="orders.order_approved", version=1, key="order_id"):
    order_id: UUID
    decided_by: str


class OrderRejected(Event, name="orders.order_rejected", version=1, key="order_id"):
    order_id: UUID
    decided_by: str
    reason: str


class OrderClosed(Event, name="orders.order_closed", version=1, key="order_id"):
    order_id: UUID


class OrderCancelled(Event, name="orders.order_cancelled", version=1, key="order_id"):
    order_id: UUID
    reason: str


# Sent to others


class ReserveStock(Command, name="inventory.reserve_stock", version=1, key="order_id"):
    order_id: UUID
    sku: str
    quantity: int


class ReleaseStock(Command, name="inventory.release_stock", version=1, key="order_id"):
    order_id: UUID


class CapturePayment(Command, name="payments.capture_payment", version=1, key="order_id"):
    order_id: UUID
    card: str
    amount: Decimal


class RefundPayment(Command, name="payments.refund_payment", version=1, key="order_id"):
    order_id: UUID
    payment_id: UUID


class ShipOrder(Command, name="shipping.ship_order", version=1, key="order_id"):
    order_id: UUID
    quantity: int


# Read from others: only the fields that orders uses


class StockReserved(Event, name="inventory.stock_reserved", version=1, key="order_id"):
    order_id: UUID


class OutOfStock(Event, name="inventory.out_of_stock", version=1, key="order_id"):
    order_id: UUID


class StockReleased(Event, name="inventory.stock_released", version=1, key="order_id"):
    order_id: UUID


class PaymentCaptured(Event, name="payments.payment_captured", version=1, key="order_id"):
    order_id: UUID
    payment_id: UUID


class PaymentDeclined(Event, name="payments.payment_declined", version=1, key="order_id"):
    order_id: UUID
    reason: str


class PaymentRefunded(Event, name="payments.payment_refunded", version=1, key="order_id"):
    order_id: UUID


class OrderShipped(Event, name="shipping.order_shipped", version=1, key="order_id"):
    order_id: UUID
    tracking_number: str


class ShipmentRefused(Event, name="shipping.shipment_refused", version=1, key="order_id"):
    order_id: UUID
    reason: str
