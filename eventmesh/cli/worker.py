"""`eventmesh worker` and `eventmesh dev`."""

from __future__ import annotations

import asyncio
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
        run_worker(load_services(services, Path.cwd()), settings)
        return
    from eventmesh.runtime.supervisor import supervise

    load_services(services, Path.cwd())  # a mistake is told once, and not by every child
    command = [sys.executable, "-m", "eventmesh", "worker", *services]
    code = asyncio.run(supervise(command, workers, settings.drain_timeout))
    if code:
        raise typer.Exit(code)


def dev(
    reload: Annotated[bool, typer.Option(help="Start again when a Python file changes.")] = True,
) -> None:
    """Run all services in one process, and start again when the code changes."""
    from eventmesh.runtime.discovery import service_targets

    names = list(service_targets(Path.cwd()))
    if not reload:
        worker(names)
        return
    try:
        from eventmesh.cli.reload import run_with_reload
    except ImportError:
        typer.echo("watchfiles is not installed (pip install 'eventmesh[reload]'): no reload.")
        worker(names)
        return
    code = run_with_reload([sys.executable, "-m", "eventmesh", "worker", *names], Path.cwd())
    if code:
        raise typer.Exit(code)


def run_worker(services: list[Service], settings: Settings) -> None:
    """Run a worker in this process until it is told to stop; raises as `Worker.run`."""
    from eventmesh.clock import SystemClock
    from eventmesh.runtime.worker import Worker
    from eventmesh.transports.factory import open_transport

    async def run() -> None:
        clock = SystemClock()
        stop = _stop_on_signals()
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


def _stop_on_signals() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second cancels the calling task."""
    stop = asyncio.Event()
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def told() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    return stop
