"""What type checkers make of the testing kit; see `public_api`."""

from __future__ import annotations

from typing import assert_type

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh import Command, Event, Service, Transaction
from eventmesh.testing.unit import Delayed, handle
from eventmesh.testing.workloads import from_message, samples


class Deposit(Command, name="bank.deposit", version=1, key="owner"):
    owner: str


class Deposited(Event, name="bank.deposited", version=1, key="owner"):
    owner: str


service = Service("bank")


@service.subscriber()
async def deposit(command: Deposit, tx: Transaction) -> Deposited:
    return Deposited(owner=command.owner)


@service.reaction(Deposited, undone_by=Deposited, name="points")
async def give_points(event: Deposited, tx: Transaction) -> int:
    return 1


async def call(session: AsyncSession) -> None:
    result = await handle(deposit, Deposit(owner="ada"), session=session)
    assert_type(result.published(Deposited), list[Deposited])
    assert_type(result.sent(Deposit), list[Deposit])
    assert_type(result.delayed(Deposited), list[Delayed[Deposited]])
    result.published(Deposit)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    await handle(give_points, Deposited(owner="ada"))
    await handle(deposit, "ada")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


assert_type(from_message(Deposit), st.SearchStrategy[Deposit])
assert_type(samples(Deposited), st.SearchStrategy[Deposited])
from_message(Deposit, owner="ada")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@given(from_message(Deposit, owner=st.just("ada")) | samples(Deposit))
def each(command: Deposit) -> None:
    assert_type(command.owner, str)
