"""The messages that payments owns, and its own models of other services' messages."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

from eventmesh import Command, Event

# Owned


class CapturePayment(Command, name="payments.capture_payment", version=1, key="order_id"):
    order_id: UUID
    card: str
    amount: Decimal


class PaymentCaptured(Event, name="payments.payment_captured", version=1, key="order_id"):
    order_id: UUID
    payment_id: UUID
    amount: Decimal
    currency: str = "USD"


class PaymentDeclined(Event, name="payments.payment_declined", version=1, key="order_id"):
    order_id: UUID
    reason: str


class RefundPayment(Command, name="payments.refund_payment", version=1, key="order_id"):
    order_id: UUID
    payment_id: UUID


class PaymentRefunded(Event, name="payments.payment_refunded", version=1, key="order_id"):
    order_id: UUID
    payment_id: UUID


# Read from others: only the fields that payments uses


class OrderPlaced(Event, name="orders.order_placed", version=1, key="order_id"):
    order_id: UUID
    card: str
    amount: Decimal


class OrderCancelled(Event, name="orders.order_cancelled", version=1, key="order_id"):
    order_id: UUID
