"""The tables of payments. Money is in cents, so that sums are exact in every database."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import CheckConstraint, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

CARD_LIMIT_CENTS = 300_00


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[dict[Any, Any]] = {str: String(255)}  # MariaDB needs a length


class Card(Base):
    """The amount spent on a card, and its limit."""

    __tablename__ = "cards"
    __table_args__ = (
        CheckConstraint("spent_cents >= 0 AND spent_cents <= limit_cents", name="card_limit"),
    )

    card: Mapped[str] = mapped_column(primary_key=True)
    limit_cents: Mapped[int] = mapped_column(default=CARD_LIMIT_CENTS)
    spent_cents: Mapped[int] = mapped_column(default=0)


class LoyaltyAccount(Base):
    """The points of whoever pays with a card."""

    __tablename__ = "loyalty_accounts"

    card: Mapped[str] = mapped_column(primary_key=True)
    points: Mapped[int]


class Payment(Base):
    """The payment of an order."""

    __tablename__ = "payments"
    __table_args__ = (CheckConstraint("status IN ('captured', 'refunded')", name="payment_status"),)

    payment_id: Mapped[UUID] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(unique=True)
    card: Mapped[str]
    cents: Mapped[int]
    status: Mapped[str] = mapped_column(default="captured")
