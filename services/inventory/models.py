"""The tables of inventory."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

OPENING_STOCK = 200
REFILL = 200


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(255)}  # MariaDB needs a length


class Stock(Base):
    """The stock of an article. `supplied` = `on_hand` + everything reserved."""

    __tablename__ = "stock"
    __table_args__ = (CheckConstraint("on_hand >= 0", name="stock_on_hand"),)

    sku: Mapped[str] = mapped_column(primary_key=True)
    supplied: Mapped[int] = mapped_column(default=OPENING_STOCK)
    on_hand: Mapped[int] = mapped_column(default=OPENING_STOCK)
    refill_ordered: Mapped[bool] = mapped_column(default=False)


class Reservation(Base):
    """Stock reserved for an order, or the note that it must not be reserved any more: `released`
    with a quantity of 0, where the release came first."""

    __tablename__ = "reservations"
    __table_args__ = (
        CheckConstraint("status IN ('reserved', 'released')", name="reservation_status"),
    )

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]
    status: Mapped[str] = mapped_column(default="reserved")
