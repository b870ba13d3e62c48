"""`eventmesh demo`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.errors import UsageError


def has_shop(root: Path) -> bool:
    """Whether the demo can be run in this folder: it needs the shop in services/, which is in a
    checkout of EventMesh and is not installed with it."""
    return (root / "services" / "demo" / "run.py").is_file()


def demo(
    purchases: Annotated[int, typer.Option(min=1, help="How many purchases to replay.")] = 1000,
    broker: Annotated[
        str | None, typer.Option(help="The broker's URL instead of EVENTMESH_BROKER_URL.")
    ] = None,
    attach: Annotated[
        bool, typer.Option("--attach", help="Use workers that run already; start none.")
    ] = False,
    kill: Annotated[
        bool,
        typer.Option(
            "--kill",
            help="Kill a random worker with SIGKILL every second, unless it is still starting.",
        ),
    ] = False,
) -> None:
    """Replay real purchases through the shop's four services, and check that all came out.

    Without any setting it runs on SQLite files. Exit code 1 when anything was lost, done twice or
    left unfinished.
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.observability.logs import configure_logs

    if attach and kill:
        raise UsageError("Workers that were not started here are not killed: --attach or --kill.")
    sys.path.insert(0, str(Path.cwd()))
    from services.demo.run import run_demo

    settings = settings_of_command()
    if broker is not None:
        settings = settings.model_copy(update={"broker_url": broker})
    configure_logs(settings)
    if not asyncio.run(run_demo(settings, purchases, attach=attach, kill=kill)):
        raise typer.Exit(1)
