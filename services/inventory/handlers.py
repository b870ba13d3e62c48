"""The handlers of the service inventory.

A saga that does not hear of its reservation in time asks again, or releases it. So both commands
may come twice, and a release before its reserve: an order has one reservation, and once that is
released, it stays so.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import exists, select, update

from eventmesh import Envelope, Service, Transaction
from services import drill
from services.guarded_updates import changes_a_row
from services.inventory.contracts import (
    OutOfStock,
    RefillStock,
    ReleaseStock,
    ReserveStock,
    StockReleased,
    StockReserved,
)
from services.inventory.models import REFILL, Base, Reservation, Stock

REFILL_DELAY = "200ms"

service = Service("inventory", metadata=Base.metadata)
service.publisher(RefillStock)


@service.subscriber(ReserveStock)
async def reserve(
    command: ReserveStock, envelope: Envelope, tx: Transaction
) -> StockReserved | OutOfStock:
    """Reserve stock; if there is too little, publish OutOfStock and order more."""
    drill.meet_outage("inventory", command.sku, envelope)
    if not await _take(tx, command.order_id, command.sku, command.quantity):
        earlier = await tx.session.get(Reservation, command.order_id)
        if earlier is None:
            await _order_refill(tx, command.sku)
        elif earlier.status == "reserved":
            return StockReserved(
                order_id=earlier.order_id, sku=earlier.sku, quantity=earlier.quantity
            )
        return OutOfStock(order_id=command.order_id, sku=command.sku)
    tx.session.add(
        Reservation(
            order_id=command.order_id,
            sku=command.sku,
            quantity=command.quantity,
        )
    )
    return StockReserved(order_id=command.order_id, sku=command.sku, quantity=command.quantity)


@service.subscriber(ReleaseStock)
async def release(command: ReleaseStock, tx: Transaction) -> StockReleased:
    """Release the stock that was reserved for an order, or that is going to be."""
    reservation = await tx.session.get(Reservation, command.order_id)
    if reservation is None:
        tx.session.add(
            Reservation(order_id=command.order_id, sku="", quantity=0, status="released")
        )
    elif reservation.status == "reserved":
        reservation.status = "released"
        await _put(tx, reservation.sku, on_hand=Stock.on_hand + reservation.quantity)
    return StockReleased(order_id=command.order_id)


@service.subscriber(RefillStock)
async def refill(command: RefillStock, tx: Transaction) -> None:
    """Add a delivery of the supplier to the stock."""
    await _put(
        tx,
        command.sku,
        supplied=Stock.supplied + command.quantity,
        on_hand=Stock.on_hand + command.quantity,
        refill_ordered=False,
    )


async def _take(tx: Transaction, order_id: UUID, sku: str, quantity: int) -> bool:
    """Take stock off the shelf, unless there is too little or the order has had its share."""
    take = (
        update(Stock)
        .where(
            Stock.sku == sku,
            Stock.on_hand >= quantity,
            ~exists().where(Reservation.order_id == order_id),
        )
        .values(on_hand=Stock.on_hand - quantity)
    )
    if await changes_a_row(tx, take):
        return True
    if await tx.session.scalar(select(Stock.sku).where(Stock.sku == sku)):
        return False
    tx.session.add(Stock(sku=sku))
    await tx.session.flush()
    return await changes_a_row(tx, take)


async def _order_refill(tx: Transaction, sku: str) -> None:
    """Order from the supplier once, however many customers find too little stock meanwhile."""
    ordered = (
        update(Stock)
        .where(Stock.sku == sku, Stock.refill_ordered.is_(False))
        .values(refill_ordered=True)
    )
    if await changes_a_row(tx, ordered):
        tx.send(RefillStock(sku=sku, quantity=REFILL), delay=REFILL_DELAY)


async def _put(tx: Transaction, sku: str, **values: object) -> None:
    await tx.session.execute(
        update(Stock)
        .where(Stock.sku == sku)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
