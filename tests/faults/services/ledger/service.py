"""An ordered subscription, whose handler fails at random. Each entry notes how many entries of its
account there were before it, so that it shows which place it really took."""

from __future__ import annotations

import asyncio
import random

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Retry, Service, exponential

WORK = 0.002
"""Seconds that a message takes, so that a fault meets some of them half-way."""

FAILS = 0.05
"""How many of the messages are retried."""


class Base(DeclarativeBase):
    pass


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(index=True)
    number: Mapped[int]
    before: Mapped[int]


class Asked(Event, name="feed.asked", version=1, key="account"):
    account: str
    number: int
    deed: str = ""


service = Service("ledger", metadata=Base.metadata)


@service.subscriber(
    ordered=True, retry=Retry(attempts=30, backoff=exponential("10ms", cap="200ms"))
)
async def post(event: Asked, session: AsyncSession) -> None:
    await asyncio.sleep(WORK)
    if random.random() < FAILS:  # noqa: S311  # no secret
        raise RuntimeError("it stumbles")
    entries = select(func.count()).where(Entry.account == event.account)
    before = await session.scalar(entries)
    session.add(Entry(account=event.account, number=event.number, before=before or 0))
