"""A service for tests of the kit that charges cards at a bank, right or with a defect."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Event, Service, Transaction
from eventmesh.testing.mesh import Mesh

ORDERS = ("first", "second", "third")


class Base(DeclarativeBase):
    pass


class Charge(Base):
    __tablename__ = "charges"
    order: Mapped[str] = mapped_column(primary_key=True)


class ChargeCard(Command, name="accounts.charge_card", version=1, key="order"):
    order: str


class CardCharged(Event, name="accounts.card_charged", version=1, key="order"):
    order: str


class Bank:
    """Somebody else's server, which outlives every worker."""

    def __init__(self) -> None:
        self.charges: list[str] = []

    def charge(self, order: str) -> None:
        self.charges.append(order)

    def charge_once(self, order: str) -> None:
        if order not in self.charges:
            self.charges.append(order)


def make_service(bank: Bank, *, is_broken: bool) -> Service:
    """With the defect, a message that is handled again charges the card again."""
    service = Service("accounts", metadata=Base.metadata)

    @service.subscriber(ChargeCard)
    async def charge(command: ChargeCard, tx: Transaction) -> CardCharged:
        tx.session.add(Charge(order=command.order))
        if is_broken:
            bank.charge(command.order)
        else:
            bank.charge_once(command.order)
        return CardCharged(order=command.order)

    return service


async def simulate_charges(mesh: Mesh, *, is_broken: bool) -> None:
    """Three cards are charged, each once."""
    bank = Bank()

    @mesh.eventually
    def each_card_is_charged_once(_read: object) -> bool:
        return sorted(bank.charges) == sorted(ORDERS)

    await mesh.start(make_service(bank, is_broken=is_broken), workers=2)
    for order in ORDERS:
        await mesh.publish(ChargeCard(order=order))
