"""A message whose transaction was committed is never a dead letter, whatever becomes of the answer.

A handler's time limit, or a lost connection, may end the wait for COMMIT after the database has
executed it. What then becomes of the message is decided by the inbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.util import await_only

from eventmesh import Service
from eventmesh.persistence.transaction import Transaction
from eventmesh.runtime.consuming.batch import MOST_CUTS
from eventmesh.runtime.declaring.retry import Retry
from tests.integration.one_handler import (
    SUB,
    Base,
    Do,
    Effect,
    effects,
    migrated,
    send,
    until_settled,
    worker,
)
from tests.support.proxy import proxy_before

Commit = Callable[[Any], None]


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


async def replace_commit(
    service: Service, tx: Transaction, ours: Callable[[Commit, Any], None]
) -> None:
    """Let `ours` commit this transaction, given the driver's way to do so and its connection."""
    dialect: Any = (await service.database()).engine.sync_engine.dialect
    session = tx.session
    replaced = await session.run_sync(lambda sync: sync.connection().connection.dbapi_connection)
    original: Commit = dialect.do_commit

    def commit(connection: Any) -> None:
        if connection.dbapi_connection is not replaced:
            original(connection)
            return
        dialect.do_commit = original
        ours(original, connection)

    dialect.do_commit = commit


async def test_a_commit_whose_answer_comes_after_the_timeout_makes_no_dead_letter(
    url: str,
) -> None:
    await migrated(url)
    service = Service("shop", metadata=Base.metadata)
    calls: list[int] = []

    def without_answer(commit: Commit, connection: Any) -> None:
        commit(connection)
        await_only(asyncio.Event().wait())

    @service.subscriber(retry=Retry(attempts=1), timeout="3s")
    async def do(command: Do, tx: Transaction) -> None:
        calls.append(command.number)
        tx.session.add(Effect(number=command.number))
        await replace_commit(service, tx, without_answer)

    async with worker(service, url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        assert await transport.dead_letters(SUB, limit=9) == []
    assert calls == [1]
    assert await effects(url) == [1]


async def test_a_commit_that_the_timeout_prevents_is_a_failure_of_its_message(url: str) -> None:
    await migrated(url)
    service = Service("shop", metadata=Base.metadata)

    def never(_commit: Commit, _connection: Any) -> None:
        await_only(asyncio.Event().wait())

    @service.subscriber(retry=Retry(attempts=1), timeout="3s")
    async def do(command: Do, tx: Transaction) -> None:
        tx.session.add(Effect(number=command.number))
        await replace_commit(service, tx, never)

    async with worker(service, url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        [letter] = await transport.dead_letters(SUB, limit=9)
    assert (
        letter.reason
        == "failed 1 time: TimeoutError: its commit took longer than the handler's 3 s"
    )
    assert await effects(url) == []


@pytest.mark.parametrize("url", ["postgres", "mariadb"], indirect=True)
async def test_a_message_whose_connection_is_cut_again_and_again_took_effect_if_the_last_commit_did(
    url: str,
) -> None:
    await migrated(url)
    service = Service("shop", metadata=Base.metadata)
    calls: list[int] = []

    async with proxy_before(url) as proxy:

        def cut(commit: Commit, connection: Any) -> None:
            if len(calls) < MOST_CUTS:
                proxy.cut()
            commit(connection)
            proxy.cut()
            connection.cursor().execute("SELECT 1")  # for the error that the driver raises

        @service.subscriber(retry=Retry(attempts=1))
        async def do(command: Do, tx: Transaction) -> None:
            calls.append(command.number)
            tx.session.add(Effect(number=command.number))
            await replace_commit(service, tx, cut)

        async with worker(service, proxy.url) as transport:
            await send(transport, 1)
            await until_settled(transport)
            assert await transport.dead_letters(SUB, limit=9) == []
    assert calls == [1] * MOST_CUTS
    assert await effects(url) == [1]
