"""HTTP probes and metrics, served by the worker on its own event loop.

A liveness probe must fail when the event loop is blocked, so it is answered by that loop:

    GET /livez    200 while the event loop runs
    GET /readyz   200 while every subscription and relay works, else 503 with the reasons; also
                  warnings about what waits for an operator
    GET /metrics  for Prometheus

A client of the port must not be able to stop the worker, so connections are bounded: at most 32 at
a time, each for one request. A connection that has not sent its request within 5 seconds is closed,
or earlier if another one needs its place. No connection lasts longer than 30 seconds.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import h11
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from eventmesh.errors import UsageError
from eventmesh.observability.metrics import WorkerMetrics
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.readiness import problems, warnings

MAX_CONNECTIONS = 32
REQUEST_TIMEOUT = 5.0  # seconds to send a request
CONNECTION_TIMEOUT = 30.0  # seconds in total, including slow readers

_BACKLOG = 16
"""Connections that the kernel queues and the event loop accepts at a time. Each is an open file
descriptor before it can be closed."""


def make_app(worker: Worker, *, outbox_max_age: float) -> Starlette:
    """The probes of a worker, as an ASGI application."""
    metrics = WorkerMetrics(worker)

    async def live(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def ready(_: Request) -> Response:
        found = await problems(worker, outbox_max_age=outbox_max_age)
        answer = {"ready": not found, "problems": found, "warnings": await warnings(worker)}
        return JSONResponse(answer, status_code=503 if found else 200)

    async def measured(_: Request) -> Response:
        return Response(await metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return Starlette(
        routes=[Route("/livez", live), Route("/readyz", ready), Route("/metrics", measured)]
    )


@asynccontextmanager
async def answering(worker: Worker, host: str, port: int) -> AsyncIterator[int]:
    """Serve probes while the context is open; yields the port, which is a free one for 0.

    UsageError if the port cannot be opened.
    """
    with _listening(host, port) as listener:
        app = make_app(worker, outbox_max_age=worker.settings.outbox_max_age)
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="error",  # invalid requests are not logged
                access_log=False,
                timeout_graceful_shutdown=1,
                http=_Connection,
                backlog=_BACKLOG,
                headers=[("connection", "close")],
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await asyncio.wait([serving])


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"Probes cannot be served on {host} port {port}: {error}. Choose another "
            f"EVENTMESH_HEALTH_PORT or EVENTMESH_HEALTH_HOST."
        ) from None
    with listener:
        yield listener


class _Connection(H11Protocol):
    """One client and its single request."""

    _deadlines: tuple[asyncio.TimerHandle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the client; if there are too many, close the one that has waited longest."""
        super().connection_made(transport)
        self._deadlines = (
            self.loop.call_later(REQUEST_TIMEOUT, self._end_if_waiting),
            self.loop.call_later(CONNECTION_TIMEOUT, transport.abort),
        )
        if len(self.connections) > MAX_CONNECTIONS:
            others = [each for each in self.connections if isinstance(each, _Connection)]
            waiting = [each for each in others if each is not self and each._is_waiting]
            oldest = min(waiting, key=lambda each: each._deadlines[0].when(), default=self)
            oldest._end()

    def connection_lost(self, exc: Exception | None) -> None:
        for deadline in self._deadlines:
            deadline.cancel()
        super().connection_lost(exc)

    @property
    def _is_waiting(self) -> bool:
        """Whether the client has not sent its whole request yet."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _end_if_waiting(self) -> None:
        if self._is_waiting:
            self._end()

    def _end(self) -> None:
        self.connections.discard(self)  # frees its place now
        self.transport.abort()


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the worker."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
