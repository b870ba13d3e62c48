"""Two services, and a handful of messages that together take every path a message can take."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Retry, Service, Transaction, constant
from eventmesh.clock import Clock

SOON = Retry(attempts=8, backoff=constant("50ms"), jitter=0)
DELAY = "300ms"


class Base(DeclarativeBase):
    pass


class Effect(Base):
    """No constraint of this table prevents a duplicate: only the inbox does."""

    __tablename__ = "effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    subscription: Mapped[str]
    account: Mapped[str]
    number: Mapped[int]


class Take(Command, name="desk.take", version=1, key="account"):
    account: str
    number: int


class Taken(Event, name="desk.taken", version=1, key="account"):
    account: str
    number: int


class TakenRead(Event, name="desk.taken", version=1, key="account"):
    account: str
    number: int


ORDERED = {"ada": (1, 2, 3), "ben": (4, 5)}
"""The numbers of each account's commands; their effects keep this order everywhere."""

SPECIAL = {
    "later": 6,  # its command and its event are delayed
    "faulty": 7,  # its handler in the ledger raises the first time
    "slow": 8,  # its handler takes longer than a group may
    "twin": 9,  # the broker holds it twice
    "suspect": 10,  # it was redelivered so often that it may be a poison message
}

REFUSED = "refused"
"""The account whose messages the broker rejects."""

SUBSCRIPTIONS = {"desk": ("desk.take",), "ledger": ("ledger.book", "ledger.post")}
METADATA: MetaData = Base.metadata
NUMBERS = [*itertools.chain(*ORDERED.values()), *SPECIAL.values()]


def make_desk(clock: Clock) -> Service:
    """Handles commands and publishes an event for each."""
    desk = Service("desk", metadata=METADATA, clock=clock)
    desk.publisher(Taken)
    desk.publisher(Take)

    @desk.subscriber(Take, retry=SOON)
    async def take(command: Take, tx: Transaction) -> None:
        await _enter(tx, "desk.take", command)
        delay = DELAY if command.account == "later" else 0
        tx.publish(Taken(account=command.account, number=command.number), delay=delay)
        if command.account == "slow":
            await clock.sleep(0.06)

    return desk


def make_ledger(clock: Clock) -> Service:
    """Handles the desk's events in two subscriptions, one of them with two lanes."""
    ledger = Service("ledger", metadata=METADATA, clock=clock)
    fail = _fails_once()

    @ledger.subscriber(TakenRead, retry=SOON)
    async def book(event: TakenRead, tx: Transaction) -> None:
        await _enter(tx, "ledger.book", event)
        fail(event)

    @ledger.subscriber(TakenRead, retry=SOON, concurrency=2)
    async def post(event: TakenRead, tx: Transaction) -> None:
        await _enter(tx, "ledger.post", event)

    return ledger


async def _enter(tx: Transaction, subscription: str, message: Take | TakenRead) -> None:
    tx.session.add(
        Effect(subscription=subscription, account=message.account, number=message.number)
    )
    await tx.session.flush()


def _fails_once() -> Callable[[TakenRead], None]:
    """A function that raises for each faulty event once in a process."""
    failed: set[int] = set()

    def fail(event: TakenRead) -> None:
        if event.account == "faulty" and event.number not in failed:
            failed.add(event.number)
            raise RuntimeError("the first attempt fails")

    return fail
