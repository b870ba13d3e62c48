"""The tables of shipping."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

HEAVIEST_PARCEL = 12  # CDs


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(255)}  # MariaDB needs a length


class Shipment(Base):
    """The shipment of an order. The inbox ensures one an order; no constraint does."""

    __tablename__ = "shipments"

    tracking_number: Mapped[str] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(index=True)
    quantity: Mapped[int]
