"""What a handler leaves behind in its process: tasks that outlive it, and context variables."""

from __future__ import annotations

import asyncio

from eventmesh import Service
from eventmesh.errors import UsageError
from eventmesh.persistence.transaction import Transaction
from tests.integration.one_handler import SOON, Base, Do, send, until_settled, worker


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
