"""One worker process: the worker with its event loop, its broker connection and its probes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from eventmesh.cli.garbage import exempt_what_is_there
from eventmesh.cli.signals import Signals
from eventmesh.cli.supervise import worker_command
from eventmesh.clock import SystemClock
from eventmesh.errors import EventMeshError, UsageError
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.factory import make_transport, open_transport

T = TypeVar("T")


def run_worker(
    services: Sequence[Service],
    settings: Settings,
    *,
    end_with: int | None = None,
    tell_ready: int | None = None,
) -> None:
    """Run a worker in this process until a signal stops it; raises as `Worker.run`.

    With `end_with` the process is the child of a supervisor or of `eventmesh dev`, and also stops
    at the end of the pipe with this file descriptor. `tell_ready` is one to write to once the
    worker is ready. After SIGHUP the process replaces itself with the new code, and this function
    does not return.
    """
    names = [service.name for service in services]

    async def run() -> bool:
        signals = Signals(parent=end_with, trial=worker_command(names, "--try-out"))
        with signals.handled():
            await _work(services, settings, signals.stopping, tell_ready)
        return signals.reload

    try:
        reload = run_on_loop(settings, run())
    except asyncio.CancelledError:
        raise EventMeshError(
            "The worker received a second stop signal before it had finished its messages; they "
            "will be delivered again."
        ) from None
    if reload:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # ourselves


def try_out(services: Sequence[Service], settings: Settings) -> None:
    """Start a worker up to its first message and stop it; raises as `Worker.run`."""

    async def run() -> None:
        clock = SystemClock()
        async with open_transport(
            settings.broker_url, clock, settings.transport_options
        ) as transport:
            await Worker(services, transport, settings, clock).try_out()

    run_on_loop(settings, run())


def run_on_loop(settings: Settings, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the event loop that the settings choose."""
    with asyncio.Runner(loop_factory=_loop_factory(settings)) as runner:
        return runner.run(work)


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's factory if it is wanted and installed; None for asyncio's own loop."""
    if settings.event_loop == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if settings.event_loop == "auto":
            return None
        raise UsageError(
            "EVENTMESH_EVENT_LOOP=uvloop, but uvloop is not installed: pip install "
            "'eventmesh[uvloop]', or unset the variable."
        ) from None
    return uvloop.new_event_loop


async def _work(
    services: Sequence[Service],
    settings: Settings,
    stopping: asyncio.Event,
    tell_ready: int | None,
) -> None:
    """Run a worker. The probes start first, so that /readyz reports a start that takes long."""
    clock = SystemClock()
    transport = make_transport(settings.broker_url, clock, settings.transport_options)
    worker = Worker(services, transport, settings, clock)
    async with AsyncExitStack() as stack:
        if settings.health_port is not None:
            from eventmesh.observability.probes import answering  # loads an HTTP server

            host, port = settings.health_host, settings.health_port
            await stack.enter_async_context(answering(worker, host, port))
        stack.push_async_callback(transport.close)
        await transport.connect()
        if tell_ready is not None:
            reporting = asyncio.create_task(_report_ready(worker.ready, tell_ready))
            stack.callback(reporting.cancel)
        freezing = asyncio.create_task(exempt_what_is_there(worker.ready))
        stack.callback(freezing.cancel)
        await worker.run(stopping)


async def _report_ready(ready: asyncio.Event, descriptor: int) -> None:
    await ready.wait()
    os.write(descriptor, b"\n")
    os.close(descriptor)
