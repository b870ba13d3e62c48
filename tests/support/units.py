"""Transactions on a service's database that tests begin and end themselves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventmesh import Service
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Message
from eventmesh.contracts.registry import Registry
from eventmesh.persistence import outbox, tables
from eventmesh.persistence.database import Database
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.persistence.unit_of_work import UnitOfWork
from eventmesh.wire.envelope import DEFAULT_MAX_BYTES


def unit_of_work(database: Database) -> UnitOfWork:
    """A unit of work that publishes nothing. It is rolled back at the end unless it was
    committed."""
    name = database.service
    sender = Sender(name, Registry(name), SystemClock(), DEFAULT_MAX_BYTES)
    return database.unit_of_work(sender)


async def store(
    connection: AsyncConnection,
    messages: Sequence[Outgoing],
    *,
    ordered: bool = False,
    now: datetime | None = None,
) -> None:
    """Insert these into the outbox; they become visible when the connection commits."""
    await connection.run_sync(lambda sync: outbox.store(sync, messages, ordered=ordered, now=now))


def outgoing(service: Service, *messages: Message) -> list[Outgoing]:
    """These messages as a transaction of this service would store them in the outbox."""
    sealed: list[Outgoing] = []
    transaction = Transaction(AsyncSession(), service.sender(), sealed.append)
    for message in messages:
        transaction.add(message)
    return sealed


async def newest_ids(database: Database, number: int = 1) -> list[str]:
    """The ids of the newest messages in the outbox, in order."""
    ids = select(tables.outbox.c.id).order_by(tables.outbox.c.seq.desc()).limit(number)
    async with database.reading() as connection:
        return list(await connection.scalars(ids))[::-1]
