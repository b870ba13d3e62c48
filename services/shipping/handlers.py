"""The handlers of the service shipping."""

from __future__ import annotations

from uuid import uuid4

from eventmesh import Service, Transaction
from services.shipping.contracts import OrderShipped, ShipmentRefused, ShipOrder
from services.shipping.models import HEAVIEST_PARCEL, Base, Shipment

service = Service("shipping", metadata=Base.metadata)


@service.subscriber(ShipOrder)
async def ship(command: ShipOrder, tx: Transaction) -> OrderShipped | ShipmentRefused:
    """Ship the parcel, unless it is too large. This cannot be undone."""
    if command.quantity > HEAVIEST_PARCEL:
        return ShipmentRefused(order_id=command.order_id, reason="parcel too heavy")
    shipment = Shipment(
        tracking_number=f"EM{uuid4().hex[:16].upper()}",
        order_id=command.order_id,
        quantity=command.quantity,
    )
    tx.session.add(shipment)
    return OrderShipped(
        order_id=command.order_id,
        tracking_number=shipment.tracking_number,
        quantity=command.quantity,
    )
