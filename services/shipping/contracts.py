"""The messages that shipping owns."""

from __future__ import annotations

from uuid import UUID

from eventmesh import Command, Event


class ShipOrder(Command, name="shipping.ship_order", version=1, key="order_id"):
    order_id: UUID
    quantity: int


class OrderShipped(Event, name="shipping.order_shipped", version=1, key="order_id"):
    order_id: UUID
    tracking_number: str
    quantity: int


class ShipmentRefused(Event, name="shipping.shipment_refused", version=1, key="order_id"):
    order_id: UUID
    reason: str
