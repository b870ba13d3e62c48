"""`eventmesh worker` and `eventmesh dev`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # imported when a worker runs; see `eventmesh.cli`
    from eventmesh.runtime.service import Service
    from eventmesh.runtime.settings import Settings

Names = Annotated[list[str], typer.Argument(help="Services to run.", metavar="SVC...")]


def worker(
    services: Names,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes to run; one that dies is replaced.")
    ] = 1,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Answer /livez, /readyz and /metrics there; each of several processes on a port "
            "of its own, counted up from this one.",
        ),
    ] = None,
    end_with_stdin: Annotated[bool, typer.Option("--end-with-stdin", hidden=True)] = False,
    tell_ready: Annotated[int | None, typer.Option("--tell-ready", hidden=True)] = None,
    trial: Annotated[bool, typer.Option("--try-out", hidden=True)] = False,
) -> None:
    """Run the handlers and relays of some services until SIGTERM or Ctrl-C.

    The first signal drains: what was begun is finished, the rest is given back. The second aborts.
    SIGHUP loads the code anew, if that code starts.
    """
    from eventmesh.cli.process import run_worker, try_out
    from eventmesh.observability.logs import configure_logs
    from eventmesh.runtime.discovery import load_services
    from eventmesh.runtime.settings import load_settings

    settings = load_settings()
    if health_port is not None:
        settings = settings.model_copy(update={"health_port": health_port})
    configure_logs(settings)
    if not end_with_stdin:  # else the parent has said it
        _log_unknown_variables(settings)
    loaded = load_services(services, Path.cwd())
    if trial:
        try_out(loaded, settings)
    elif workers > 1:
        _supervise(loaded, workers, settings)
    else:
        run_worker(loaded, settings, end_with_stdin=end_with_stdin, tell_ready=tell_ready)


def dev(
    reload: Annotated[bool, typer.Option(help="Start again when a Python file changes.")] = True,
) -> None:
    """Run all services in one process, and start again when the code changes."""
    from eventmesh.cli.process import worker_command
    from eventmesh.runtime.discovery import load_services

    services = load_services([], Path.cwd())
    names = [service.name for service in services]
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
    code = run_with_reload(worker_command(services), Path.cwd())
    if code:
        raise typer.Exit(code)


def _log_unknown_variables(settings: Settings) -> None:
    import structlog

    from eventmesh.runtime.settings import unknown_variables
    from eventmesh.runtime.targets import service_targets

    for unknown in unknown_variables(settings, service_targets(Path.cwd())):
        structlog.get_logger("eventmesh.settings").warning(
            "unknown variable ignored", variable=unknown.name, did_you_mean=unknown.nearest
        )


def _supervise(services: list[Service], workers: int, settings: Settings) -> None:
    """Run several processes. What is wrong with services or broker is told once, before."""
    from eventmesh.cli.process import try_broker, worker_command
    from eventmesh.clock import SystemClock
    from eventmesh.runtime.supervisor import Supervisor

    def command(number: int, ready_descriptor: int) -> list[str]:
        options = ["--end-with-stdin", f"--tell-ready={ready_descriptor}"]
        if settings.health_port:
            options.append(f"--health-port={settings.health_port + number}")
        return worker_command(services, *options)

    async def supervise() -> int:
        return await Supervisor(
            command,
            worker_command(services, "--try-out"),
            workers=workers,
            drain_timeout=settings.drain_timeout,
            clock=SystemClock(),
        ).run()

    try_broker(settings)
    code = asyncio.run(supervise())
    if code:
        raise typer.Exit(code)
