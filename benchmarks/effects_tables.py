"""The tables that a handler writes: the same order by every program, and what the hand-written one
needs besides."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, DateTime, LargeBinary, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.messages import OrderPlaced
from eventmesh.contracts.message import Event


class OrderRecorded(Event, name="bench.order_recorded", version=1, key="order_id"):
    """What is published for each order."""

    order_id: UUID
    total: Decimal


class Base(DeclarativeBase):
    """What the service owns."""


class Order(Base):
    """An order as it is kept."""

    __tablename__ = "orders"
    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID]
    email: Mapped[str]
    currency: Mapped[str]
    total: Mapped[Decimal]
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class HandBase(DeclarativeBase):
    """What a team makes when no framework makes it."""


class Processed(HandBase):
    """Messages that have had their effect."""

    __tablename__ = "processed_messages"
    message_id: Mapped[str] = mapped_column(primary_key=True)
    processed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now()
    )


class OutboxMessage(HandBase):
    """Messages to be published."""

    __tablename__ = "outbox_messages"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]
    key: Mapped[str]
    payload: Mapped[bytes] = mapped_column(LargeBinary)


def order_values(event: OrderPlaced) -> dict[str, Any]:
    """The columns of an order."""
    return {
        "order_id": event.order_id,
        "customer_id": event.customer_id,
        "email": event.email,
        "currency": event.currency,
        "total": event.total,
        "placed_at": event.placed_at,
    }
