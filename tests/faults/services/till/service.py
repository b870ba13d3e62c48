"""Two subscriptions, the second of which hears what the first publishes. Each notes what it handles
in a table that takes anything: nothing but the inbox keeps an effect from being noted twice."""

from __future__ import annotations

import asyncio
import os
import time

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Event, Service, Transaction

WORK = 0.002
"""Seconds that a message takes, so that a fault meets some of them half-way."""


DEADLY = 77
"""The exit code of a process whose handler ended it."""


class Base(DeclarativeBase):
    pass


class Effect(Base):
    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    subscription: Mapped[str]
    account: Mapped[str]
    number: Mapped[int]
    at: Mapped[float]


class Asked(Event, name="feed.asked", version=1, key="account"):
    account: str
    number: int
    deed: str = ""


class Applied(Event, name="till.applied", version=1, key="account"):
    account: str
    number: int


service = Service("till", metadata=Base.metadata)


@service.subscriber(Asked)
async def apply(event: Asked, tx: Transaction) -> Applied:
    await asyncio.sleep(WORK)
    if event.deed == "die":
        os._exit(DEADLY)
    note(tx, "apply", event)
    return Applied(account=event.account, number=event.number)


@service.subscriber(Applied)
async def tell(event: Applied, tx: Transaction) -> None:
    note(tx, "tell", event)


def note(tx: Transaction, subscription: str, event: Asked | Applied) -> None:
    effect = Effect(subscription=subscription, account=event.account, number=event.number)
    effect.at = time.time()
    tx.session.add(effect)
