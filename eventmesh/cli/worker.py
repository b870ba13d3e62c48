"""`eventmesh worker` and `eventmesh dev`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.errors import EventMeshError

if TYPE_CHECKING:  # imported when a worker runs; see `eventmesh.cli`
    from eventmesh.runtime.service import Service
    from eventmesh.runtime.settings import Settings

Names = Annotated[list[str], typer.Argument(help="Services to run.", metavar="SVC...")]


def worker(
    services: Names,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes to run; one that dies ends them all.")
    ] = 1,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
) -> None:
    """Run the handlers and relays of some services until SIGTERM or Ctrl-C.

    The first signal drains: what was begun is finished, the rest is given back. The second aborts.
    """
    from eventmesh.observability.logs import configure_logs
    from eventmesh.runtime.discovery import load_services
    from eventmesh.runtime.settings import load_settings

    settings = load_settings()
    configure_logs(settings)
    if workers == 1:
        run_worker(load_services(services, Path.cwd()), settings, end_with_stdin=end_with_stdin)
        return
    from eventmesh.runtime.supervisor import supervise

    # A mistake is told once, and not by every child.
    load_services(services, Path.cwd())
    asyncio.run(_try_broker(settings))
    command = [sys.executable, "-m", "eventmesh", "worker", "--end-with-stdin", *services]
    code = asyncio.run(supervise(command, workers, settings.drain_timeout))
    if code:
        raise typer.Exit(code)


def dev(
    reload: Annotated[bool, typer.Option(help="Start again when a Python file changes.")] = True,
) -> None:
    """Run all services in one process, and start again when the code changes."""
    from eventmesh.runtime.discovery import load_services

    names = [service.name for service in load_services([], Path.cwd())]
    if not reload:
        worker(names)
        return
    try:
        from eventmesh.cli.reload import run_with_reload
    except ImportError:
        typer.echo(
            "watchfiles is not installed (pip install 'eventmesh[reload]'): no reload.", err=True
        )
        worker(names)
        return
    code = run_with_reload([sys.executable, "-m", "eventmesh", "worker", *names], Path.cwd())
    if code:
        raise typer.Exit(code)


def run_worker(
    services: list[Service], settings: Settings, *, end_with_stdin: bool = False
) -> None:
    """Run a worker in this process until it is told to stop, or its standard input ends; raises as
    `Worker.run`."""
    from eventmesh.clock import SystemClock
    from eventmesh.runtime.worker import Worker
    from eventmesh.transports.factory import open_transport

    async def run() -> None:
        clock = SystemClock()
        stop = _stop_on_signals(_SAME_SIGNAL if end_with_stdin else 0.0)
        if end_with_stdin:
            _stop_at_end_of(sys.stdin.fileno(), stop)
        async with open_transport(
            settings.broker_url, clock, settings.transport_options
        ) as transport:
            await Worker(services, transport, settings, clock).run(stop)

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        raise EventMeshError(
            "The worker was told to stop twice and did not finish what it had begun; those "
            "messages will be delivered again."
        ) from None


async def _try_broker(settings: Settings) -> None:
    """Unreachable when the broker does not answer."""
    from eventmesh.clock import SystemClock
    from eventmesh.transports.factory import open_transport

    async with open_transport(settings.broker_url, SystemClock(), settings.transport_options):
        pass


_SAME_SIGNAL = 0.5
"""Seconds in which a second signal to a child of `--workers` is the first one told twice: by a
service manager that tells a whole group, and by the parent that passes it on."""


def _stop_at_end_of(descriptor: int, stop: asyncio.Event) -> None:
    """Set the event when the pipe's other end is closed: when the parent is gone, however."""
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(descriptor, 1024):
            loop.remove_reader(descriptor)
            stop.set()

    loop.add_reader(descriptor, readable)


def _stop_on_signals(same_within: float) -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second cancels the calling task, unless
    it comes so soon that it is the first one told twice."""
    stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    told_at = 0.0

    def told() -> None:
        nonlocal told_at
        if not stop.is_set():
            told_at = loop.time()
            stop.set()
        elif task is not None and loop.time() - told_at >= same_within:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    return stop
