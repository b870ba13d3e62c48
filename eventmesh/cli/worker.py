"""`eventmesh worker` and `eventmesh dev`: run the handlers and relays of services."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.garbage import none_collected
from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when a worker runs; see `eventmesh.cli`
    from eventmesh.runtime.declaring.settings import Settings

_LAST_PORT = 65_535

Names = Annotated[list[str], typer.Argument(help="Services to run.", metavar="SERVICE")]


def worker(
    services: Names,
    workers: Annotated[
        int, typer.Option(min=1, help="Number of worker processes.", metavar="N")
    ] = 1,
    supervise: Annotated[
        bool,
        typer.Option(
            "--supervise/--no-supervise",
            help="Replace a worker process that dies. With --no-supervise, one worker runs in "
            "this process, for a service manager that replaces it (systemd, Kubernetes).",
        ),
    ] = True,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_LAST_PORT,
            help="Serve /livez, /readyz and /metrics on this port, on all addresses or on "
            "EVENTMESH_HEALTH_HOST. Several processes use consecutive ports.",
            metavar="PORT",
        ),
    ] = None,
    end_with: Annotated[int | None, typer.Option("--end-with", hidden=True)] = None,
    tell_ready: Annotated[int | None, typer.Option("--tell-ready", hidden=True)] = None,
    trial: Annotated[bool, typer.Option("--try-out", hidden=True)] = False,
) -> None:
    """Run services until SIGTERM or Ctrl-C.

    The first signal drains: messages that are being handled are finished, and
    the others are returned to the broker. The second signal aborts. SIGHUP
    reloads the code, unless the new code cannot start.
    """
    import structlog

    from eventmesh.observability.logs import configure_logs
    from eventmesh.runtime.declaring.settings import load_settings

    settings = load_settings()
    if health_port is not None:
        settings = settings.model_copy(update={"health_port": health_port})
    configure_logs(settings)
    if tell_ready is None:  # otherwise the supervisor has logged them
        _log_unknown_variables(settings)
    if workers > 1 and not supervise:
        raise UsageError(
            "--workers cannot be combined with --no-supervise: several processes need a supervisor."
        )
    last_port = (settings.health_port or 0) + workers - 1
    if settings.health_port and last_port > _LAST_PORT:
        raise UsageError(
            f"{workers} workers need the ports {settings.health_port} to {last_port}, and the last "
            f"port is {_LAST_PORT}: choose a lower --health-port or EVENTMESH_HEALTH_PORT."
        )
    if workers > 1 and settings.broker_url.startswith("memory:"):
        structlog.get_logger("eventmesh.worker").warning(
            "memory broker not shared between processes",
            workers=workers,
            hint="each process only sees its own messages; set EVENTMESH_BROKER_URL",
        )
    if supervise and end_with is None and not trial:
        _run_supervised(services, workers, settings)
        return
    with none_collected():
        from eventmesh.cli.process import run_worker, try_out
        from eventmesh.runtime.declaring.discovery import load_services

        loaded = load_services(services, Path.cwd())
    if trial:
        try_out(loaded, settings)
    else:
        run_worker(loaded, settings, end_with=end_with, tell_ready=tell_ready)


def dev(
    reload: Annotated[bool, typer.Option(help="Restart when a Python file changes.")] = True,
) -> None:
    """Run all services in one process; restart it when code changes."""
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
            "Warning: `eventmesh dev` does not restart on changes, because watchfiles is not "
            "installed: pip install 'eventmesh[reload]'. --no-reload turns this warning off.",
            err=True,
        )
        worker(names, supervise=False)
        return
    code = run_with_reload(worker_command(names), Path.cwd())
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
            "unknown environment variable ignored",
            variable=unknown.name,
            did_you_mean=unknown.nearest,
        )
