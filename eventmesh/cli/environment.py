"""The settings of a command, with a warning about variables that have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from eventmesh.cli.terminal import print_label

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.runtime.declaring.settings import Settings


def settings_of_command() -> Settings:
    """The settings for a command that connects to a server.

    Unknown EVENTMESH_ variables are reported on standard error: with a misspelt name, the command
    would silently use another broker or database.
    """
    from eventmesh.runtime.declaring.settings import load_settings, unknown_variables
    from eventmesh.runtime.declaring.targets import service_targets

    settings = load_settings()
    for unknown in unknown_variables(settings, service_targets(Path.cwd())):
        print_label("Warning: ", "yellow")
        typer.echo(str(unknown), err=True)
    return settings
