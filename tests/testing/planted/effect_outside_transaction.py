"""A handler that commits its effect in a transaction of its own, not in the one that is given.

Nothing tells EventMesh that the message has taken effect, so that one that is delivered again, as
after a kill between the commit and the answer to the broker, is paid in again.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from eventmesh import Command, Service, Transaction
from eventmesh.testing.mesh import Mesh


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    owner: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int] = mapped_column(default=0)


class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str
    cents: int


async def pay_in(command: Deposit, tx: Transaction) -> None:
    account = await tx.session.get(Account, command.owner) or Account(owner=command.owner, cents=0)
    tx.session.add(account)
    account.cents += command.cents


broken = Service("bank", metadata=Base.metadata)


@broken.subscriber(Deposit, name="deposit")
async def deposit_apart(command: Deposit) -> None:
    async with broken.transaction() as tx:
        await pay_in(command, tx)


corrected = Service("bank", metadata=Base.metadata)


@corrected.subscriber(Deposit)
async def deposit(command: Deposit, tx: Transaction) -> None:
    await pay_in(command, tx)


async def body(mesh: Mesh, bank: Service) -> None:
    @mesh.eventually
    def each_deposit_is_paid_in_once(read):  # type: ignore[no-untyped-def]
        accounts = read(bank).scalars(select(Account))
        assert {each.owner: each.cents for each in accounts} == {"ada": 300, "bob": 50}

    await mesh.start(bank)
    await mesh.publish(Deposit(owner="ada", cents=100))
    await mesh.publish(Deposit(owner="ada", cents=200))
    await mesh.publish(Deposit(owner="bob", cents=50))
