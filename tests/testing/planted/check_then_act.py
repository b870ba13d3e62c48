"""A handler that checks in one transaction and acts in the next.

Between the two, another worker sells the same seat. Each transaction by itself is correct, and the
handler may be called again: only two at a time are too many.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from sqlalchemy import exists, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Service, Transaction
from eventmesh.testing.mesh import Mesh


class Base(DeclarativeBase):
    pass


class Ticket(Base):
    __tablename__ = "tickets"

    guest: Mapped[str] = mapped_column(primary_key=True)
    seat: Mapped[str]


class BuyTicket(Command, name="theatre.buy_ticket", version=1, key="guest"):
    guest: str
    seat: str


async def is_taken(command: BuyTicket, tx: Transaction) -> bool:
    return bool(await tx.session.scalar(select(exists().where(Ticket.seat == command.seat))))


async def sell(command: BuyTicket, tx: Transaction) -> None:
    await tx.session.merge(Ticket(guest=command.guest, seat=command.seat))


broken = Service("theatre", metadata=Base.metadata)


@broken.subscriber(BuyTicket, name="buy")
async def check_and_buy(command: BuyTicket) -> None:
    async with broken.transaction() as tx:
        taken = await is_taken(command, tx)
    if not taken:
        async with broken.transaction() as tx:
            await sell(command, tx)


corrected = Service("theatre", metadata=Base.metadata)


@corrected.subscriber(BuyTicket)
async def buy(command: BuyTicket, tx: Transaction) -> None:
    if not await is_taken(command, tx):
        await sell(command, tx)


async def body(mesh: Mesh, theatre: Service) -> None:
    @mesh.always
    def a_seat_is_sold_once(read):  # type: ignore[no-untyped-def]
        seats = Counter(ticket.seat for ticket in read(theatre).scalars(select(Ticket)))
        assert all(number == 1 for number in seats.values()), seats

    await mesh.start(theatre, workers=2)
    await mesh.publish(BuyTicket(guest="ada", seat="A1"))
    await mesh.quiet()
    await mesh.publish(BuyTicket(guest="bob", seat="A2"))
    await asyncio.sleep(0.005)  # one after another, as a rule
    await mesh.publish(BuyTicket(guest="cyd", seat="A2"))
