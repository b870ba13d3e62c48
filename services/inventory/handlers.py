"""The handlers of the service inventory."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import select, update

from eventmesh import Service, Transaction
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
async def reserve(command: ReserveStock, tx: Transaction) -> StockReserved | OutOfStock:
    """Reserve stock; if there is too little, publish OutOfStock and order more."""
    if not await _take(tx, command.sku, command.quantity):
        await _order_refill(tx, command.sku)
        return OutOfStock(order_id=command.order_id, sku=command.sku)
    tx.session.add(
        Reservation(
            reservation_id=uuid4(),
            order_id=command.order_id,
            sku=command.sku,
            quantity=command.quantity,
        )
    )
    return StockReserved(order_id=command.order_id, sku=command.sku, quantity=command.quantity)


@service.subscriber(ReleaseStock)
async def release(command: ReleaseStock, tx: Transaction) -> StockReleased:
    """Release the stock that was reserved for an order."""
    reservations = await tx.session.scalars(
        select(Reservation).where(
            Reservation.order_id == command.order_id, Reservation.status == "reserved"
        )
    )
    for reservation in reservations:
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


async def _take(tx: Transaction, sku: str, quantity: int) -> bool:
    take = (
        update(Stock)
        .where(Stock.sku == sku, Stock.on_hand >= quantity)
        .values(on_hand=Stock.on_hand - quantity)
        .returning(Stock.sku)
        .execution_options(synchronize_session=False)
    )
    if await tx.session.scalar(take):
        return True
    if await tx.session.scalar(select(Stock.sku).where(Stock.sku == sku)):
        return False
    tx.session.add(Stock(sku=sku))
    await tx.session.flush()
    return bool(await tx.session.scalar(take))


async def _order_refill(tx: Transaction, sku: str) -> None:
    """Order from the supplier once, however many customers find too little stock meanwhile."""
    ordered = (
        update(Stock)
        .where(Stock.sku == sku, Stock.refill_ordered.is_(False))
        .values(refill_ordered=True)
        .returning(Stock.sku)
        .execution_options(synchronize_session=False)
    )
    if await tx.session.scalar(ordered):
        tx.send(RefillStock(sku=sku, quantity=REFILL), delay=REFILL_DELAY)


async def _put(tx: Transaction, sku: str, **values: object) -> None:
    await tx.session.execute(
        update(Stock)
        .where(Stock.sku == sku)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
