"""Probes and metrics over HTTP, answered by the worker itself, in its own event loop: a loop that
is stuck does not answer, and that is the point of a liveness probe.

    GET /livez    200 while the event loop runs
    GET /readyz   200 while the worker does what it is there for, else 503 with the reasons
    GET /metrics  for Prometheus
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from eventmesh.errors import UsageError
from eventmesh.observability.metrics import WorkerMetrics
from eventmesh.runtime.readiness import problems
from eventmesh.runtime.worker import Worker


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
                access_log=False,
                timeout_graceful_shutdown=1,
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


class _Server(uvicorn.Server):
    """A server inside a program that listens for signals by itself."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
