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

from contextlib import AbstractAsyncContextManager

from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.hosting import Host


def relaying(service: Service) -> AbstractAsyncContextManager[None]:
    """Relay beside the body, see `service.relay()`."""
    return Host([service], service.settings, service.clock, relayed=[service]).start_relaying()
