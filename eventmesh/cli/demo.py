"""`eventmesh demo`: runs the reference shop and checks the result."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.errors import UsageError


def has_shop(root: Path) -> bool:
    """Whether this folder holds the shop in services/, which the demo runs. A checkout of
    EventMesh has it; an installed package does not."""
    return (root / "services" / "demo" / "run.py").is_file()


def demo(
    purchases: Annotated[
        int, typer.Option(min=1, help="Number of purchases to replay.", metavar="N")
    ] = 1000,
    broker: Annotated[
        str | None,
        typer.Option(help="Broker to use instead of EVENTMESH_BROKER_URL.", metavar="URL"),
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Use workers that already run instead of starting any.")
    ] = False,
    kill: Annotated[
        bool,
        typer.Option(
            "--kill",
            help="Kill a random worker with SIGKILL every second, unless it is still starting.",
        ),
    ] = False,
    slow: Annotated[
        bool,
        typer.Option(
            "--slow",
            help="Let services be unable to answer now and then, longer than a saga waits.",
        ),
    ] = False,
    dashboard: Annotated[
        bool,
        typer.Option(
            "--dashboard", help="Serve the dashboard of the shop, also afterwards until Ctrl-C."
        ),
    ] = False,
) -> None:
    """Replay real purchases through the shop's four services.

    Then check every order, payment and shipment. Exit code 1 if anything was
    lost, done twice or left unfinished. Without settings, the demo runs on
    SQLite files.
    """
    from eventmesh.cli.dashboard import require_dashboard
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.observability.logs import configure_logs

    if attach and kill:
        raise UsageError(
            "--attach cannot be combined with --kill: the demo kills only workers that it started."
        )
    if attach and slow:
        raise UsageError(
            "--attach cannot be combined with --slow: the demo slows down only workers that it "
            "started."
        )
    if dashboard:
        require_dashboard()
    sys.path.insert(0, str(Path.cwd()))
    from services.demo.run import run_demo

    settings = settings_of_command()
    if broker is not None:
        settings = settings.model_copy(update={"broker_url": broker})
    configure_logs(settings)
    running = run_demo(
        settings, purchases, attach=attach, kill=kill, slow=slow, dashboard=dashboard
    )
    if not asyncio.run(running):
        raise typer.Exit(1)
