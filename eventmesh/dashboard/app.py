"""The ASGI application: its routes, and what it holds open."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from eventmesh.clock import Clock, SystemClock
from eventmesh.dashboard.access import Authenticate, OnLoopback, User
from eventmesh.dashboard.forgery import ForgeryGuard
from eventmesh.dashboard.gate import Gate
from eventmesh.dashboard.jobs import Jobs
from eventmesh.dashboard.live import Live, View
from eventmesh.dashboard.masking import Mask, Masking
from eventmesh.dashboard.pages.actions import Actions
from eventmesh.dashboard.pages.audit import Audit
from eventmesh.dashboard.pages.dead_letters import DeadLetters
from eventmesh.dashboard.pages.outbox import Outbox
from eventmesh.dashboard.pages.overview import Overview
from eventmesh.dashboard.pages.sagas import Sagas
from eventmesh.dashboard.pages.search import Search
from eventmesh.dashboard.pages.subscriptions import Subscriptions
from eventmesh.dashboard.pages.topology import Topology
from eventmesh.dashboard.rendering import make_environment
from eventmesh.dashboard.sampler import Sampler
from eventmesh.dashboard.site import Page, Perform, Site
from eventmesh.errors import Conflict, Drift, EventMeshError, Unreachable, UsageError
from eventmesh.operations.action_log import operator_of_machine
from eventmesh.operations.reach import Reach
from eventmesh.operations.status import mesh_status
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings, load_settings
from eventmesh.transports.base import Transport

INTERVAL = 2.0
"""Seconds between measurements."""


class Dashboard:
    """The dashboard of these services, as an ASGI application.

    `settings` name the broker and the databases; by default those of the environment.
    `authenticate` tells who sends a request; by default only this machine is served, with the role
    operator. `mask` hides parts of payloads. `origins` are the addresses under which browsers know
    the pages, such as `https://ops.example.org`, where a proxy changes the Host header. `transport`
    is a connected one of the application's own, for a broker that is in its memory.

    Served by itself, it closes its connections when the server ends. Mounted into another
    application, whose server knows nothing of it, use it as an asynchronous context manager in that
    application's lifespan, or call `close`.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        settings: Settings | None = None,
        authenticate: Authenticate | None = None,
        mask: Mask | None = None,
        origins: Collection[str] = (),
        transport: Transport | None = None,
        interval: float = INTERVAL,
        clock: Clock | None = None,
    ) -> None:
        if not services:
            raise UsageError("A dashboard needs at least one service.")
        clock = clock or SystemClock()
        settings = settings or load_settings()
        self._reach = Reach(services, settings, clock, transport)
        # Of its own, because a measurement that takes too long closes its connections, and a bulk
        # action may be under way on the others.
        self._measured = Reach(services, settings, clock, transport)
        self._sampler = Sampler(lambda: mesh_status(self._measured), clock, interval)
        guard = ForgeryGuard(origins)
        self._site = Site(self._reach, self._sampler, make_environment(), guard, Masking(mask))
        self._jobs = Jobs(self._reach)
        who = authenticate or OnLoopback(User(operator_of_machine(), "operator"))
        self._app = Starlette(
            routes=_routes(self._site, self._jobs),
            middleware=[Middleware(Gate, authenticate=who, guard=guard)],
            exception_handlers={HTTPException: self._failed, EventMeshError: self._failed},
            lifespan=self._lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop measuring, and close the connections."""
        await self._jobs.close()
        await self._sampler.close()
        for reach in (self._measured, self._reach):
            await reach.__aexit__(None, None, None)

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with self:
            yield

    async def _failed(self, request: Request, error: Exception) -> Response:
        """The page that tells what is wrong."""
        match error:
            case HTTPException():
                code, text = error.status_code, error.detail
            case Unreachable():
                code, text = 503, str(error)
            case Conflict() | Drift():
                code, text = 409, str(error)
            case _:
                code, text = 400, str(error)
        title = HTTPStatus(code).phrase
        return self._site.page(request, "error.html", code, title=title, text=text)


def _routes(site: Site, jobs: Jobs) -> list[BaseRoute]:
    """All addresses: pages, what they do, their live parts, and the files of the package."""
    overview, subscriptions, topology = Overview(site), Subscriptions(site), Topology(site)
    dead_letters, outbox, sagas = DeadLetters(site, jobs), Outbox(site), Sagas(site)
    pages: dict[str, Page] = {
        "/": overview.page,
        "/subscription": subscriptions.page,
        "/dead-letters": dead_letters.page,
        "/dead-letters/letter": dead_letters.letter,
        "/dead-letters/review": dead_letters.review,
        "/dead-letters/review-one": dead_letters.review_one,
        "/job": dead_letters.job,
        "/outbox": outbox.page,
        "/outbox/message": outbox.message,
        "/sagas": sagas.page,
        "/sagas/saga": sagas.saga,
        "/topology": topology.page,
        "/schemas": topology.schemas,
        "/audit": Audit(site).page,
        "/search": Search(site).page,
        "/actions": Actions(site).page,
    }
    actions: dict[str, Perform] = {
        "/subscription/pause": subscriptions.pause,
        "/subscription/resume": subscriptions.resume,
        "/dead-letters/act": dead_letters.act,
        "/dead-letters/edit": dead_letters.edit,
        "/outbox/retry": outbox.retry,
        "/outbox/skip": outbox.skip,
        "/sagas/operate": sagas.operate,
    }
    views: dict[str, View] = {
        "overview": overview.live,
        "subscription": subscriptions.live,
        "job": dead_letters.live_job,
        "topology": topology.live,
    }
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in pages.items()),
        *(Route(path, site.action(perform), methods=["POST"]) for path, perform in actions.items()),
        Route("/events", Live(site, views).events, methods=["GET"]),
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
