"""The messages that inventory owns."""

from __future__ import annotations

from uuid import UUID

from eventmesh import Command, Event


class ReserveStock(Command, name="inventory.reserve_stock", version=1, key="order_id"):
    order_id: UUID
    sku: str
    quantity: int


class StockReserved(Event, name="inventory.stock_reserved", version=1, key="order_id"):
    order_id: UUID
    sku: str
    quantity: int


class OutOfStock(Event, name="inventory.out_of_stock", version=1, key="order_id"):
    order_id: UUID
    sku: str


class ReleaseStock(Command, name="inventory.release_stock", version=1, key="order_id"):
    order_id: UUID


class StockReleased(Event, name="inventory.stock_released", version=1, key="order_id"):
    order_id: UUID


class RefillStock(Command, name="inventory.refill_stock", version=1, key="sku"):
    """A delivery of the supplier; inventory sends it to itself with a delay."""

    sku: str
    quantity: int
