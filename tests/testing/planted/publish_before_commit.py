"""A web endpoint that publishes in one transaction, and commits its state in the next.

Between the two, the application may be killed: a parcel is sent for an order that nobody has.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Service, Transaction
from eventmesh.testing.mesh import Mesh


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    order: Mapped[str] = mapped_column(primary_key=True)


class OrderTaken(Event, name="counter.order_taken", version=1, key="order"):
    order: str


class ParcelBase(DeclarativeBase):
    pass


class Parcel(ParcelBase):
    __tablename__ = "parcels"

    order: Mapped[str] = mapped_column(primary_key=True)


parcels = Service("parcels", metadata=ParcelBase.metadata)


@parcels.subscriber(OrderTaken)
async def send(event: OrderTaken, tx: Transaction) -> None:
    tx.session.add(Parcel(order=event.order))


counter = Service("counter", metadata=Base.metadata)
taken = counter.publisher(OrderTaken)


async def broken(order: str) -> None:
    await taken.publish(OrderTaken(order=order))
    async with counter.transaction() as tx:
        tx.session.add(Order(order=order))


async def corrected(order: str) -> None:
    async with counter.transaction() as tx:
        tx.session.add(Order(order=order))
        tx.publish(OrderTaken(order=order))


async def body(mesh: Mesh, endpoint) -> None:  # type: ignore[no-untyped-def]
    @mesh.eventually
    def a_parcel_belongs_to_an_order(read):  # type: ignore[no-untyped-def]
        orders = set(read(counter).scalars(select(Order.order)))
        assert orders == set(read(parcels).scalars(select(Parcel.order)))

    await mesh.start(counter, parcels)
    await mesh.request(counter, lambda: endpoint("o1"))
    await mesh.request(counter, lambda: endpoint("o2"))
