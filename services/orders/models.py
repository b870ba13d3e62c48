"""The tables of orders."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(255)}  # MariaDB needs a length


class Approval(Base):
    """A large order that a person approves or rejects."""

    __tablename__ = "approvals"
    __table_args__ = (
        CheckConstraint("decision IN ('approved', 'rejected')", name="approval_decision"),
    )

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    cents: Mapped[int]
    decision: Mapped[str | None]
    decided_by: Mapped[str | None]


class Order(Base):
    """One order. `endings` counts how often it has ended, which must be once."""

    __tablename__ = "orders"
    __table_args__ = (
        CheckConstraint("status IN ('placed', 'closed', 'cancelled')", name="order_status"),
    )

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    card: Mapped[str]
    sku: Mapped[str]
    quantity: Mapped[int]
    cents: Mapped[int]
    status: Mapped[str] = mapped_column(default="placed")
    reason: Mapped[str | None]
    tracking_number: Mapped[str | None]
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    endings: Mapped[int] = mapped_column(default=0)
