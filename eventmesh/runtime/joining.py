"""The relay of one service inside a program that is not a worker, such as a web application. This
one is complete; it publishes with its own sessions (the `bank` is that of the README):

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
`postgresql+asyncpg://…` or `mariadb+asyncmy://…` if that is not the file of the example. Its tables
are created by `eventmesh db upgrade bank`. Join a session before its first statement, and again in
each of its transactions. If a dependency of FastAPI commits the session, write
`Depends(…, scope="function")`: otherwise it commits after the response that reports success. A
plain `Session`, in a handler that runs in a thread, is joined in the same way. Messages are
published if and only if the changes of state are committed.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.hosting import Host


def relaying(service: Service) -> AbstractAsyncContextManager[None]:
    """Relay while the context is open, see `Service.relay`."""
    return Host([service], service.settings, service.clock, relayed=[service]).start_relaying()
