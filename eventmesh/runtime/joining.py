"""The relay of one service inside a program that is no worker, such as a web application. A whole
one, which publishes with its own sessions (the `bank` is that of the README):

    from fastapi import FastAPI
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from services.bank.service import Account, Deposited, service

    app = FastAPI(lifespan=lambda app: service.relay())
    sessions = async_sessionmaker(create_async_engine("sqlite+aiosqlite:///.eventmesh/bank.db"))

    @app.post("/accounts/{owner}")
    async def open_account(owner: str) -> None:
        async with sessions.begin() as session:
            session.add(Account(owner=owner))
            service.join(session).publish(Deposited(owner=owner, balance=0))

Without `service.relay()`, a worker of the service relays what the application has committed.

The engine is the application's own, for the database of the service, EVENTMESH_BANK_DATABASE_URL:
`postgresql+asyncpg://…` or `mariadb+asyncmy://…` where that is not the file of the example, and its
tables are made by `eventmesh db upgrade bank`. A session that comes from elsewhere is joined before
its first statement, and anew in each of its transactions; if it comes from a dependency of FastAPI
that commits, write `Depends(…, scope="function")`, or that happens after an answer that says all is
well. A plain `Session`, of a handler that runs in a thread, is joined in the same way. What is
published shares the fate of what is added: without a commit, nothing comes of either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from eventmesh.errors import Unreachable
from eventmesh.runtime.backoff import Reconnect
from eventmesh.runtime.hosting import check_before_start
from eventmesh.runtime.relaying.relay import Relay
from eventmesh.transports.factory import make_transport, open_transport

if TYPE_CHECKING:
    from eventmesh.persistence.database import Database
    from eventmesh.runtime.declaring.service import Service


@asynccontextmanager
async def relaying(service: Service) -> AsyncIterator[None]:
    """Relay beside the body; what is left at its end is relayed for a short time. A broker that is
    away, at the start too, is waited for: what is published stays in the outbox until then.

    Raises Unreachable, Drift or UsageError, as a worker at its start, when anything else is amiss.
    """
    settings = service.settings
    check_before_start(service, settings)
    make_transport(settings.broker_url, service.clock, settings.transport_options)  # can it be?
    stop = asyncio.Event()
    async with service:
        database = await service.database()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_relay(service, database, stop))
            try:
                yield
            finally:
                stop.set()


async def _relay(service: Service, database: Database, stop: asyncio.Event) -> None:
    settings, clock = service.settings, service.clock
    log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.relay")
    reconnect = Reconnect(clock)
    while not stop.is_set():
        try:
            async with open_transport(
                settings.broker_url, clock, settings.transport_options
            ) as transport:
                await transport.declare([])
                relay = Relay(
                    service.name,
                    database,
                    transport,
                    clock,
                    settings.lease_time,
                    purging=settings,
                    published=service.registry.published_names(),
                    subscriptions=[handler.subscription for handler in service.worked],
                )
                service.on_commit(relay.wake)
                await relay.run(stop)
        except Unreachable as error:
            log.warning("relay waits", service=service.name, error=str(error))
            await reconnect.wait(stop)
