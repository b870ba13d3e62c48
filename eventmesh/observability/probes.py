"""Probes and metrics over HTTP, answered by the worker itself, in its own event loop: a loop that
is stuck does not answer, and that is the point of a liveness probe.

    GET /livez    200 while the event loop runs
    GET /readyz   200 while the worker does what it is there for, else 503 with the reasons
    GET /metrics  for Prometheus

Whoever can reach the port must not be able to stop the worker with it, so that connections are
bounded: at most 32 at a time, each for one request. One that has not sent a whole request within 5
seconds is closed, or sooner, when another one needs its place. None lasts longer than 30 seconds.
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
from eventmesh.runtime.readiness import problems

MOST_CONNECTIONS = 32
REQUEST_TIMEOUT = 5.0  # seconds for sending a request
CONNECTION_TIMEOUT = 30.0  # seconds for all of it, also for somebody who reads slowly

_BACKLOG = 16
"""Connections that the system accepts ahead of us, and that an event loop accepts at once: each is
a file descriptor, before it can be refused."""


def make_app(worker: Worker, *, outbox_max_age: float) -> Starlette:
    """The probes of a worker, as an ASGI application."""
    metrics = WorkerMetrics(worker)

    async def live(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def ready(_: Request) -> Response:
        found = await problems(worker, outbox_max_age=outbox_max_age)
        return JSONResponse(
            {"ready": not found, "problems": found}, status_code=503 if found else 200
        )

    async def measured(_: Request) -> Response:
        return Response(await metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    return Starlette(
        routes=[Route("/livez", live), Route("/readyz", ready), Route("/metrics", measured)]
    )


@asynccontextmanager
async def answering(worker: Worker, host: str, port: int) -> AsyncIterator[int]:
    """Answer probes while the context is open, on the port that it gives: `port`, or a free one
    for 0. UsageError when the port cannot be had."""
    with _listening(host, port) as listener:
        app = make_app(worker, outbox_max_age=worker.settings.outbox_max_age)
        server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level="error",  # what strangers send is not worth a line each
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
            f"The probes cannot be answered on {host} port {port}: {error}. Choose another "
            f"EVENTMESH_HEALTH_PORT or EVENTMESH_HEALTH_HOST."
        ) from None
    with listener:
        yield listener


class _Connection(H11Protocol):
    """One client, for one request."""

    _deadlines: tuple[asyncio.TimerHandle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take part, in the place of the client that has waited the longest if need be."""
        super().connection_made(transport)
        self._deadlines = (
            self.loop.call_later(REQUEST_TIMEOUT, self._end_if_waiting),
            self.loop.call_later(CONNECTION_TIMEOUT, transport.abort),
        )
        if len(self.connections) > MOST_CONNECTIONS:
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
        """Whether the client has not sent its whole request."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _end_if_waiting(self) -> None:
        if self._is_waiting:
            self._end()

    def _end(self) -> None:
        self.connections.discard(self)  # it does not count any more
        self.transport.abort()


class _Server(uvicorn.Server):
    """A server inside a program that listens for signals by itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
