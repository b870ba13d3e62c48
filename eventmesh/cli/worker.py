"""`eventmesh worker` and `eventmesh dev`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when a worker runs; see `eventmesh.cli`
    from eventmesh.runtime.declaring.settings import Settings

Names = Annotated[list[str], typer.Argument(help="Services to run.", metavar="SVC...")]


def worker(
    services: Names,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes to run; one that dies is replaced.")
    ] = 1,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise/--no-supervise",
            help="Whether to replace a process that dies. Not needed where a service manager does "
            "so: without, a single worker runs in this process.",
        ),
    ] = True,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Answer /livez, /readyz and /metrics there, on all addresses unless "
            "EVENTMESH_HEALTH_HOST names one; each of several processes on a port of its own, "
            "counted up from this one.",
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
    from eventmesh.observability.logs import configure_logs
    from eventmesh.runtime.declaring.settings import load_settings

    settings = load_settings()
    if health_port is not None:
        settings = settings.model_copy(update={"health_port": health_port})
    configure_logs(settings)
    if not end_with_stdin:  # else the parent has said it
        _log_unknown_variables(settings)
    if workers > 1 and not supervise:
        raise UsageError(
            "--workers cannot be combined with --no-supervise: several processes need a supervisor."
        )
    if supervise and not (end_with_stdin or trial):
        _run_supervised(services, workers, settings)
        return
    from eventmesh.cli.process import run_worker, try_out
    from eventmesh.runtime.declaring.discovery import load_services

    loaded = load_services(services, Path.cwd())
    if trial:
        try_out(loaded, settings)
    else:
        run_worker(loaded, settings, end_with_stdin=end_with_stdin, tell_ready=tell_ready)


def dev(
    reload: Annotated[bool, typer.Option(help="Start again when a Python file changes.")] = True,
) -> None:
    """Run all services in one process, and start again when the code changes."""
    from eventmesh.cli.supervise import worker_command
    from eventmesh.runtime.declaring.discovery import load_services

    services = load_services([], Path.cwd())
    names = [service.name for service in services]
    if not reload:
        worker(names, supervise=False)
        return
    try:
        from eventmesh.cli.reload import run_with_reload
    except ImportError:
        typer.echo(
            "watchfiles is not installed (pip install 'eventmesh[reload]'): no reload.", err=True
        )
        worker(names, supervise=False)
        return
    code = run_with_reload(worker_command(names, "--no-supervise"), Path.cwd())
    if code:
        raise typer.Exit(code)


def _run_supervised(names: Sequence[str], workers: int, settings: Settings) -> None:
    from eventmesh.cli.supervise import supervise
    from eventmesh.runtime.declaring.targets import known_targets

    known_targets(names, Path.cwd())
    code = supervise(list(dict.fromkeys(names)), workers, settings)
    if code:
        raise typer.Exit(code)


def _log_unknown_variables(settings: Settings) -> None:
    import structlog

    from eventmesh.runtime.declaring.settings import unknown_variables
    from eventmesh.runtime.declaring.targets import service_targets

    for unknown in unknown_variables(settings, service_targets(Path.cwd())):
        structlog.get_logger("eventmesh.settings").warning(
            "unknown variable ignored", variable=unknown.name, did_you_mean=unknown.nearest
        )
