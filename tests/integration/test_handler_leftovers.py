"""What a handler leaves behind in its process: tasks that outlive it, and context variables."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import text
from structlog.contextvars import bind_contextvars, get_contextvars

from eventmesh import Service
from eventmesh.errors import UsageError
from eventmesh.persistence.transaction import Transaction
from tests.integration.one_handler import SOON, SUB, Base, Do, send, until_settled, worker

TENANT: ContextVar[str] = ContextVar("tenant")


async def test_a_task_that_a_handler_started_may_publish_once_the_handler_has_returned(
    sqlite_url: str,
) -> None:
    service = Service("shop", metadata=Base.metadata)
    publisher = service.publisher(Do)
    was_refused, has_returned = asyncio.Event(), asyncio.Event()
    refused: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def follow_up() -> None:
        try:
            await publisher.publish(Do(number=2))
        except UsageError as error:
            refused.append(str(error))
            was_refused.set()
        await has_returned.wait()
        await publisher.publish(Do(number=3))

    @service.subscriber(retry=SOON)
    async def do(command: Do, tx: Transaction) -> None:
        tasks.append(asyncio.create_task(follow_up()))
        await was_refused.wait()

    async with worker(service, sqlite_url) as transport:
        await send(transport, 1)
        await until_settled(transport)
        has_returned.set()
        await asyncio.gather(*tasks)
    assert [error.partition(":")[0] for error in refused] == [
        "A handler of service 'shop' opened another transaction of the service, by a publisher or "
        "by service.transaction()"
    ]


@pytest.mark.parametrize("most", [None, "1m"], ids=["no limit", "limited"])
async def test_what_a_handler_sets_in_its_context_is_not_seen_by_later_messages(
    sqlite_url: str, most: str | None
) -> None:
    service = Service("shop", metadata=Base.metadata)
    seen: list[tuple[str, dict[str, Any]]] = []

    @service.subscriber(retry=SOON, timeout=most)
    async def do(command: Do, tx: Transaction) -> None:
        await tx.session.execute(text("SELECT 1"))
        user = {k: v for k, v in get_contextvars().items() if k == "user"}
        seen.append((TENANT.get(), user))
        TENANT.set(f"tenant {command.number}")
        bind_contextvars(user=command.number)
        await tx.session.execute(text("SELECT 1"))
        await asyncio.sleep(0)
        assert TENANT.get() == f"tenant {command.number}"
        assert get_contextvars()["message_id"]

    TENANT.set("of the worker")
    async with worker(service, sqlite_url) as transport:
        await send(transport, 1, 2, 3)
        await until_settled(transport)
        assert not await transport.dead_letters(SUB, limit=1)
    assert seen == [("of the worker", {})] * 3
