"""The tables of shipping."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HEAVIEST_PARCEL = 12  # CDs


class Base(DeclarativeBase):
    pass


class Shipment(Base):
    """The shipment of an order. The inbox ensures one an order; no constraint does."""

    __tablename__ = "shipments"

    tracking_number: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(index=True)
    quantity: Mapped[int]
