"""What the environment tells a command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.runtime.declaring.settings import Settings


def settings_of_command() -> Settings:
    """The settings for a command that connects to a server. Names in the environment that have no
    effect are reported on standard error: a misspelt one would mean another broker or database."""
    from eventmesh.runtime.declaring.settings import load_settings, unknown_variables
    from eventmesh.runtime.declaring.targets import service_targets

    settings = load_settings()
    for unknown in unknown_variables(settings, service_targets(Path.cwd())):
        typer.secho("Warning: ", fg="yellow", bold=True, nl=False, err=True)
        typer.echo(str(unknown), err=True)
    return settings
