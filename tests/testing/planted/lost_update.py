"""Two workers read, compute, and write back: the second one overwrites what the first has written.

SQLite lets one transaction write at a time, and so do row locks elsewhere, but the value was read
in an earlier transaction. That the handler may be called again is seen to.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Service, Transaction
from eventmesh.testing.mesh import Mesh


class Base(DeclarativeBase):
    pass


class Stock(Base):
    __tablename__ = "stock"

    sku: Mapped[str] = mapped_column(primary_key=True)
    on_hand: Mapped[int]


class Sale(Base):
    __tablename__ = "sales"

    order: Mapped[str] = mapped_column(primary_key=True)


class SellBook(Command, name="shop.sell_book", version=1, key="order"):
    order: str


broken = Service("shop", metadata=Base.metadata)


@broken.subscriber(SellBook, name="sell")
async def read_and_write_back(command: SellBook) -> None:
    async with broken.transaction() as tx:
        on_hand = (await tx.session.get_one(Stock, "book")).on_hand
    await asyncio.sleep(0.01)  # asks for the price
    async with broken.transaction() as tx:
        if await tx.session.get(Sale, command.order) is None:
            tx.session.add(Sale(order=command.order))
            (await tx.session.get_one(Stock, "book")).on_hand = on_hand - 1


corrected = Service("shop", metadata=Base.metadata)


@corrected.subscriber(SellBook)
async def sell(command: SellBook, tx: Transaction) -> None:
    await asyncio.sleep(0.01)  # asks for the price
    tx.session.add(Sale(order=command.order))
    await tx.session.execute(
        update(Stock).where(Stock.sku == "book").values(on_hand=Stock.on_hand - 1)
    )


async def body(mesh: Mesh, shop: Service) -> None:
    @mesh.eventually
    def each_sale_is_taken_off(read):  # type: ignore[no-untyped-def]
        assert read(shop).get_one(Stock, "book").on_hand == 10 - 6

    await mesh.start(shop, workers=2)
    async with mesh.session(shop) as session:
        session.add(Stock(sku="book", on_hand=10))
    for order in ("o1", "o2", "o3", "o4", "o5", "o6"):
        await mesh.publish(SellBook(order=order))
        await mesh.advance("20ms")  # one after another, as a rule
