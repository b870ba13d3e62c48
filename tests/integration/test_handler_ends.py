"""A handler that ends the shared transaction, in whatever way, affects no other message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from eventmesh import Service
from eventmesh.errors import UsageError
from eventmesh.persistence.database import Database
from eventmesh.persistence.dialects.registry import SQLITE
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.declaring.settings import Settings
from tests.integration import one_handler
from tests.integration.one_handler import (
    SOON,
    SUB,
    TIMEOUT_SECONDS,
    Base,
    Do,
    Effect,
    effects,
    send,
    until_settled,
    worker,
)


async def migrated(url: str) -> None:
    """Migrate, and create a table on whose conflicts SQLite rolls back the whole transaction."""
    await one_handler.migrated(url)
    database = Database(url, service="shop")
    async with database.connection() as connection:
        conflict = "ON CONFLICT ROLLBACK" if database.dialect is SQLITE else ""
        await connection.execute(text(f"CREATE TABLE rare (n INTEGER UNIQUE {conflict})"))
        await connection.execute(text("INSERT INTO rare VALUES (1)"))
    await database.close()


async def run_sync_commit(tx: Transaction) -> None:
    await tx.session.run_sync(lambda session: session.commit())


async def run_sync_rollback(tx: Transaction) -> None:
    await tx.session.run_sync(lambda session: session.rollback())


async def reset(tx: Transaction) -> None:
    await tx.session.reset()


async def invalidate(tx: Transaction) -> None:
    await tx.session.invalidate()


async def connection_commit(tx: Transaction) -> None:
    await (await tx.session.connection()).commit()


async def connection_rollback(tx: Transaction) -> None:
    await (await tx.session.connection()).rollback()


async def transaction_commit(tx: Transaction) -> None:
    transaction = tx.session.get_transaction()
    assert transaction is not None
    await transaction.commit()


async def transaction_rollback(tx: Transaction) -> None:
    transaction = tx.session.get_transaction()
    assert transaction is not None
    await transaction.rollback()


async def text_commit(tx: Transaction) -> None:
    await tx.session.execute(text("COMMIT"))


async def text_rollback(tx: Transaction) -> None:
    await tx.session.execute(text("ROLLBACK"))


async def rollback_by_conflict(tx: Transaction) -> None:
    with suppress(IntegrityError):
        await tx.session.execute(text("INSERT INTO rare VALUES (1)"))


WAYS: list[Callable[[Transaction], Any]] = [
    run_sync_commit,
    run_sync_rollback,
    reset,
    invalidate,
    connection_commit,
    connection_rollback,
    transaction_commit,
    transaction_rollback,
    text_commit,
    text_rollback,
    rollback_by_conflict,
]


CASES = [
    *((way, "continues") for way in WAYS),
    *((way, "fails once") for way in (connection_commit, text_rollback, rollback_by_conflict)),
]
"""Whether a later message of the group fails does not depend on how the transaction ended, but on
whether it was committed, and by whom."""


@pytest.mark.parametrize(
    ("way", "after"), CASES, ids=[f"{way.__name__}-{after}" for way, after in CASES]
)
async def test_ending_the_shared_transaction_dead_letters_the_message_and_no_other_of_its_group(
    database_url: str, way: Callable[[Transaction], Any], after: str
) -> None:
    await migrated(database_url)
    service = Service("shop", metadata=Base.metadata)
    failed: list[int] = []

    @service.subscriber(retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        await tx.session.flush()
        if command.number == 30:
            await way(tx)
        if command.number == 32 and not failed and after == "fails once":
            failed.append(32)
            raise ValueError("not yet")

    async with worker(service, database_url) as transport:
        await send(transport, *range(60))
        await until_settled(transport)
        letters = await transport.dead_letters(SUB, limit=9)
    found = await effects(database_url)
    assert [number for number in range(60) if number not in found] == ([30] if letters else [])


async def test_publishing_after_the_end_of_the_transaction_is_an_error(sqlite_url: str) -> None:
    service = Service("shop", metadata=Base.metadata)
    service.configure(Settings(database_urls={"shop": sqlite_url}))
    service.publisher(Do)
    kept: list[Transaction] = []
    attempts: list[str] = []

    @service.subscriber(retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        kept.append(tx)

    async with worker(service, sqlite_url) as transport:
        async with service.transaction() as tx:
            tx.send(Do(number=1))
        kept.append(tx)
        await until_kept(kept, 2)
        await until_settled(transport)
        for each in kept:
            with pytest.raises(UsageError, match="has ended"):
                each.send(Do(number=2))
            attempts.append("refused")
    assert attempts == ["refused", "refused"]


async def until_kept(kept: list[Transaction], number: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while len(kept) < number:  # noqa: ASYNC110  # there is no event
            await asyncio.sleep(0.01)
