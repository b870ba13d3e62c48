"""Web applications that publish with their own sessions: one with FastAPI, one with Starlette, and
the documented one as a real process."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from eventmesh import Event, Service, Settings, Transaction
from eventmesh.clock import SystemClock
from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import outbox
from eventmesh.runtime import joining
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.transports.base import Subscription
from eventmesh.transports.factory import open_transport
from eventmesh.transports.memory import MemoryTransport
from tests.integration.conftest import POLL_INTERVAL, TIMEOUT_SECONDS, until
from tests.integration.test_join import encoding, url_for
from tests.support.proxy import proxy_before

if TYPE_CHECKING:
    from eventmesh.testing.servers import Server
    from tests.integration.conftest import Project


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    number: Mapped[int] = mapped_column(primary_key=True)


class OrderPlaced(Event, name="orders.order_placed", version=1, key="number"):
    number: int


class PlacedElsewhere(Event, name="orders.order_placed", version=1):
    """The same event as another service declares it."""

    number: int


class NewOrder(BaseModel):
    number: int
    fail: str = ""


def orders(settings: Settings) -> Service:
    service = Service("orders", metadata=Base.metadata)
    service.configure(settings)
    service.publisher(OrderPlaced)
    return service


# FastAPI: a dependency provides the session of a request, and commits it before the response.


async def session_of(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session
        await session.commit()  # not reached after an error


RequestSession = Annotated[AsyncSession, Depends(session_of, scope="function")]


def transaction_of(request: Request, session: RequestSession) -> Transaction:
    service: Service = request.app.state.service
    return service.join(session)


RequestTransaction = Annotated[Transaction, Depends(transaction_of)]


async def place(order: NewOrder, session: RequestSession, tx: RequestTransaction) -> NewOrder:
    session.add(Order(number=order.number))
    tx.publish(OrderPlaced(number=order.number))
    if order.fail == "http":
        raise HTTPException(409, "out of stock")
    if order.fail == "bug":
        raise RuntimeError("a bug")
    return order


def place_in_thread(order: NewOrder, request: Request) -> NewOrder:
    """A handler that is a plain function, with a synchronous session."""
    with Session(request.app.state.plain_engine) as session, session.begin():
        session.add(Order(number=order.number))
        request.app.state.service.join(session).publish(OrderPlaced(number=order.number))
    return order


def fastapi_app(service: Service, engine: AsyncEngine) -> FastAPI:
    app = FastAPI(lifespan=lambda _: service.relay())
    app.state.service = service
    app.state.sessions = async_sessionmaker(engine)
    app.post("/orders", status_code=201)(place)
    app.post("/orders/in-thread", status_code=201)(place_in_thread)
    return app


# Starlette: the handler itself commits, before it responds.


def starlette_app(service: Service, engine: AsyncEngine) -> Starlette:
    sessions = async_sessionmaker(engine)

    async def place(request: Request) -> Response:
        order = NewOrder.model_validate_json(await request.body())
        async with sessions.begin() as session:
            session.add(Order(number=order.number))
            service.join(session).publish(OrderPlaced(number=order.number))
            if order.fail:
                raise RuntimeError("a bug")
        return JSONResponse(order.model_dump(), 201)

    return Starlette(
        routes=[Route("/orders", place, methods=["POST"])], lifespan=lambda _: service.relay()
    )


Make = Callable[[Service, AsyncEngine], FastAPI | Starlette]


@dataclass
class Site:
    """A web application in this process, and a service that subscribes to its events."""

    app: FastAPI | Starlette
    service: Service
    engine: AsyncEngine
    settings: Settings
    received: list[int] = field(default_factory=list)

    @property
    def lifespan(self) -> Callable[[], AbstractAsyncContextManager[object]]:
        """Run the application's lifespan, as a server does."""
        return lambda: self.app.router.lifespan_context(self.app)

    async def post(self, number: int, path: str = "/orders", fail: str = "") -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
            return await client.post(path, json={"number": number, "fail": fail})

    async def stored(self) -> list[int]:
        async with self.engine.connect() as connection:
            return list(await connection.scalars(select(Order.number).order_by(Order.number)))

    async def waiting(self) -> int:
        async with self.engine.connect() as connection:
            return await connection.scalar(select(func.count()).select_from(outbox)) or 0

    @asynccontextmanager
    async def billing(self) -> AsyncIterator[None]:
        """A worker of another service."""
        service = Service("billing")

        @service.subscriber(PlacedElsewhere)
        async def bill(event: PlacedElsewhere) -> None:
            self.received.append(event.number)

        async with working(service, self.settings):
            yield

    async def until_received(self, *numbers: int) -> None:
        """Wait until billing has received each of these once."""

        async def received() -> bool:
            return sorted(self.received) == sorted(numbers)

        await eventually(received)

    async def until_received_at_least_once(self, *numbers: int) -> None:
        """A message is redelivered if the connection is lost before it is settled, and billing has
        no inbox."""

        async def received() -> bool:
            return set(self.received) == set(numbers)

        await eventually(received)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await condition():  # noqa: ASYNC110  # the condition may be in a database
            await asyncio.sleep(POLL_INTERVAL)


@asynccontextmanager
async def working(service: Service, settings: Settings) -> AsyncIterator[None]:
    """Run a worker of this service while the context is open."""
    stop, clock = asyncio.Event(), SystemClock()
    async with open_transport(settings.broker_url, clock, settings.transport_options) as transport:
        worker = Worker([service], transport, settings, clock)
        running = asyncio.ensure_future(worker.run(stop))
        try:
            await asyncio.wait_for(worker.ready.wait(), TIMEOUT_SECONDS)
            yield
        finally:
            stop.set()
            await asyncio.wait_for(running, TIMEOUT_SECONDS)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return Settings(
        broker_url=f"sqlite:///{tmp_path}/broker.db",
        database_urls={"orders": database_url.replace("mariadb://", "mariadb+asyncmy://")},
        schemas=tmp_path / "schemas",
    )


@asynccontextmanager
async def site_of(make: Make, settings: Settings) -> AsyncIterator[Site]:
    url = settings.database_url("orders")
    database = Database(url, service="orders")
    await migration.upgrade(database, Base.metadata)
    await database.close()
    service, engine = orders(settings), create_async_engine(url)
    yield Site(make(service, engine), service, engine, settings)
    await engine.dispose()
    await service.close()


@pytest.fixture(params=[fastapi_app, starlette_app])
async def site(request: pytest.FixtureRequest, settings: Settings) -> AsyncIterator[Site]:
    async with site_of(request.param, settings) as made:
        yield made


@pytest.mark.parametrize("database_url", ["sqlite", "postgres", "mariadb"], indirect=True)
async def test_an_event_of_a_request_reaches_another_service(site: Site) -> None:
    async with site.billing(), site.lifespan():
        assert [(await site.post(number)).status_code for number in (1, 2, 3)] == [201] * 3
        await site.until_received(1, 2, 3)
    assert await site.stored() == [1, 2, 3]
    assert await site.waiting() == 0


async def test_a_request_that_fails_stores_and_publishes_nothing(site: Site) -> None:
    async with site.billing(), site.lifespan():
        assert (await site.post(1, fail="bug")).status_code == 500
        assert (await site.post(2)).status_code == 201
        assert (await site.post(2)).status_code == 500  # its commit fails
        await site.post(3)
        await site.until_received(2, 3)
    assert await site.stored() == [2, 3]
    assert await site.waiting() == 0


async def test_an_http_error_publishes_nothing(settings: Settings) -> None:
    async with site_of(fastapi_app, settings) as site, site.billing(), site.lifespan():
        assert (await site.post(1, fail="http")).status_code == 409
        await site.post(2)
        await site.until_received(2)
        assert await site.stored() == [2]


async def test_a_handler_in_a_thread_publishes_with_a_synchronous_session(
    settings: Settings,
) -> None:
    from sqlalchemy import create_engine

    async with site_of(fastapi_app, settings) as site, site.billing(), site.lifespan():
        url = settings.database_url("orders")
        driver = "sqlite+pysqlite" if "sqlite" in url else "postgresql+psycopg"
        url = url_for(driver, url)
        site.app.state.plain_engine = create_engine(url, connect_args=encoding(url))
        await asyncio.gather(*(site.post(number, "/orders/in-thread") for number in range(10)))
        await site.until_received(*range(10))
        site.app.state.plain_engine.dispose()


async def test_a_worker_relays_for_a_web_application_without_a_relay(
    site: Site,
) -> None:
    """The lifespan does not run."""
    await site.post(1)
    assert await site.waiting() == 1
    async with site.billing(), working(orders(site.settings), site.settings):
        await site.post(2)
        await site.until_received(1, 2)


async def test_the_application_serves_requests_while_the_broker_is_unreachable(
    settings: Settings, redis_server: Server, tmp_path: Path
) -> None:
    """The broker is unreachable at the start and later; no message published meanwhile is lost."""
    async with proxy_before(redis_server.url) as proxy:
        away = settings.model_copy(
            update={"broker_url": proxy.url, "broker_prefix": f"t{tmp_path.name.replace('_', '')}"}
        )
        async with site_of(starlette_app, away) as site:
            async with proxy.refusing(), site.lifespan():
                assert (await site.post(1)).status_code == 201
            assert await site.waiting() == 1
            async with site.billing(), site.lifespan():
                await site.until_received_at_least_once(1)
                async with proxy.refusing():
                    assert (await site.post(2)).status_code == 201
                await site.until_received_at_least_once(1, 2)


async def test_a_relay_that_fails_is_tried_again_while_the_application_serves(
    settings: Settings,
) -> None:
    """Here a table is away for a while, as in a migration that goes wrong."""
    async with site_of(starlette_app, settings) as site, site.billing():

        async def rename(before: str, after: str) -> None:
            async with site.engine.begin() as connection:
                await connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

        async def has_failed() -> bool:
            return "outbox relay failed, trying again" in [line["event"] for line in lines]

        with capture_logs() as lines:
            async with site.lifespan():
                await rename("eventmesh_outbox", "elsewhere")
                await eventually(has_failed)
                await rename("elsewhere", "eventmesh_outbox")
                assert (await site.post(1)).status_code == 201
                await site.until_received(1)
    failed = next(line for line in lines if line["event"] == "outbox relay failed, trying again")
    assert failed["log_level"] == "error"
    assert "eventmesh_outbox" in failed["error"]
    assert failed["exc_info"].__traceback__ is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_broker_that_cannot_be_used_does_not_end_the_application(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose exchange an operator has declared wrongly, and then corrects."""
    is_wrong, declare, tries = True, MemoryTransport.declare, asyncio.Event()

    async def refuse(transport: MemoryTransport, subscriptions: Sequence[Subscription]) -> None:
        if is_wrong:
            tries.set()
            raise UsageError("the exchange is of another type")
        await declare(transport, subscriptions)

    monkeypatch.setattr(MemoryTransport, "declare", refuse)
    on_memory = settings.model_copy(update={"broker_url": "memory://"})
    async with site_of(starlette_app, on_memory) as site, site.lifespan():
        await asyncio.wait_for(tries.wait(), TIMEOUT_SECONDS)
        assert (await site.post(1)).status_code == 201
        assert await site.waiting() == 1
        is_wrong = False

        async def is_relayed() -> bool:
            return await site.waiting() == 0

        await eventually(is_relayed)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_relay_whose_database_is_away_logs_that_it_waits_for_the_database(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise Unreachable("The database of service 'orders' does not answer.")

    async def is_logged() -> bool:
        return bool(lines)

    async with site_of(starlette_app, settings) as site:
        monkeypatch.setattr(Database, "transact", fail)
        with capture_logs() as lines:
            async with site.lifespan():
                await eventually(is_logged)
    assert lines[0]["event"] == "outbox relay waiting for database"


async def test_the_documented_application_runs_as_shown(project: Project) -> None:
    """It runs as a separate process, together with a worker of the bank."""
    indented = (joining.__doc__ or "").partition("\n\n")[2].partition("\nWithout")[0]
    documented = textwrap.dedent(indented)
    assert len([line for line in documented.splitlines() if line]) <= 12
    project.service()
    project.write("site_of_bank.py", documented)
    # Else one relay publishes again what the other has, once that has stood still for long.
    project.environment["EVENTMESH_LEASE_TIME"] = "1h"
    worker = project.worker()
    site = project.start_program(
        sys.executable, "-m", "uvicorn", "--port=0", "--app-dir=.", "site_of_bank:app"
    )
    until(lambda: "Uvicorn running on " in site.err or site.process.poll(), "the site to run")
    assert site.process.poll() is None, site.err
    address = site.err.partition("Uvicorn running on ")[2].split()[0]
    # The server closes a connection after an error, perhaps during the next request.
    async with httpx.AsyncClient(
        base_url=address, headers={"Connection": "close"}, timeout=TIMEOUT_SECONDS
    ) as client:
        answers = [await client.post(f"/accounts/{owner}") for owner in ("ada", "ada", "bob")]
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    worker.until_prints("ada has 0.00")
    worker.until_prints("bob has 0.00")
    site.tell(signal.SIGTERM)
    site.ended()
    assert sorted(worker.drain().out.splitlines()) == ["ada has 0.00", "bob has 0.00"]
