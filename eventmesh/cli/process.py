"""One worker process, with everything around the worker: its event loop, its broker, its probes."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from eventmesh.cli.signals import Signals
from eventmesh.cli.supervise import worker_command
from eventmesh.clock import SystemClock
from eventmesh.errors import EventMeshError, UsageError
from eventmesh.runtime.consuming.worker import Worker
from eventmesh.runtime.declaring.service import Service
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.factory import make_transport, open_transport

T = TypeVar("T")


def run_worker(
    services: Sequence[Service],
    settings: Settings,
    *,
    end_with_stdin: bool = False,
    tell_ready: int | None = None,
) -> None:
    """Run a worker in this process until it is told to stop, or its standard input ends; raises as
    `Worker.run`. Told to reload, the process begins anew as itself, and this does not return.

    Once it works it writes to the descriptor `tell_ready`.
    """

    names = [service.name for service in services]

    async def run() -> bool:
        signals = Signals(child=end_with_stdin, trial=worker_command(names, "--try-out"))
        with signals.heard():
            await _work(services, settings, signals.stop, tell_ready)
        return signals.reload

    try:
        reload = run_on_loop(settings, run())
    except asyncio.CancelledError:
        raise EventMeshError(
            "The worker was told to stop twice and did not finish what it had begun; those "
            "messages will be delivered again."
        ) from None
    if reload:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606  # ourselves


def try_out(services: Sequence[Service], settings: Settings) -> None:
    """Do all that a worker does before its first message; raises as `Worker.run`."""

    async def run() -> None:
        clock = SystemClock()
        async with open_transport(
            settings.broker_url, clock, settings.transport_options
        ) as transport:
            await Worker(services, transport, settings, clock).try_out()

    run_on_loop(settings, run())


def run_on_loop(settings: Settings, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns, run on the event loop of the settings."""
    with asyncio.Runner(loop_factory=_loop_factory(settings)) as runner:
        return runner.run(work)


def _loop_factory(settings: Settings) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is wanted and installed; None for asyncio's own."""
    if settings.event_loop == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if settings.event_loop == "auto":
            return None
        raise UsageError(
            "EVENTMESH_EVENT_LOOP asks for uvloop, which is not installed: "
            "pip install 'eventmesh[uvloop]', or leave the variable out."
        ) from None
    return uvloop.new_event_loop


async def _work(
    services: Sequence[Service],
    settings: Settings,
    stop: asyncio.Event,
    tell_ready: int | None,
) -> None:
    """A worker with everything around it. Probes come first, so that they tell how it starts."""
    clock = SystemClock()
    transport = make_transport(settings.broker_url, clock, settings.transport_options)
    worker = Worker(services, transport, settings, clock)
    async with AsyncExitStack() as stack:
        if settings.health_port is not None:
            from eventmesh.observability.probes import answering  # only where it is asked for

            host, port = settings.health_host, settings.health_port
            await stack.enter_async_context(answering(worker, host, port))
        stack.push_async_callback(transport.close)
        await transport.connect()
        if tell_ready is not None:
            telling = asyncio.create_task(_tell(worker.ready, tell_ready))
            stack.callback(telling.cancel)
        settling = asyncio.create_task(_settle_memory(worker.ready))
        stack.callback(settling.cancel)
        await worker.run(stop)


async def _settle_memory(ready: asyncio.Event) -> None:
    """What is loaded by now stays. Let the collector not look through it again and again: each time
    it stopped everything for some 70 ms."""
    await ready.wait()
    gc.collect()
    gc.freeze()


async def _tell(ready: asyncio.Event, descriptor: int) -> None:
    await ready.wait()
    os.write(descriptor, b"\n")
    os.close(descriptor)
