"""The two services of `benchmarks.rabbitmq_cluster`: `shop` publishes, `ledger` writes down."""

from __future__ import annotations

import os
import time

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Service, Transaction


class Sold(Event, name="shop.sold", version=1, key="customer"):
    """Something was sold; `number` counts what this customer bought, from 0."""

    customer: str
    number: int


class Base(DeclarativeBase): ...


class Entry(Base):
    """One effect. Nothing here keeps an effect from being there twice: that is what is tried."""

    __tablename__ = "entries"
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    customer: Mapped[str]
    number: Mapped[int]
    at: Mapped[float]


shop = Service("shop")
sold = shop.publisher(Sold)

ledger = Service("ledger", metadata=Base.metadata)


@ledger.subscriber(Sold, ordered=os.environ.get("LEDGER_ORDERED") == "yes")
async def write_down(event: Sold, tx: Transaction) -> None:
    tx.session.add(Entry(customer=event.customer, number=event.number, at=time.time()))
