"""`eventmesh`: collects the commands, and turns errors into one paragraph and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli import asyncapi, database, demo, dlq, outbox, schema, unrouted, worker
from eventmesh.errors import EventMeshError
from eventmesh.printable import printable_lines

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"eventmesh {version('eventmesh')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_tell_version, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    """Event-driven messaging between services that own their databases."""


app.command()(worker.worker)
app.command()(worker.dev)
app.command()(asyncapi.asyncapi)
app.add_typer(schema.app, name="schema")
app.add_typer(database.app, name="db")
app.add_typer(dlq.app, name="dlq")
app.add_typer(outbox.app, name="outbox")
app.add_typer(unrouted.app, name="unrouted")


def main() -> None:
    """Run the command line; ends the process with an exit code of section "Exit codes"."""
    if demo.has_shop(Path.cwd()):
        app.command()(demo.demo)
    try:
        app(prog_name="eventmesh")
    except EventMeshError as error:
        fail(error)
    except KeyboardInterrupt:  # before a worker listens for signals, nothing has begun
        sys.exit(1)
    except BaseExceptionGroup as group:
        # Tasks that failed together: the first error made on purpose explains the rest.
        expected = group.subgroup(EventMeshError)
        if expected is None:
            raise
        fail(_first(expected))


def fail(error: EventMeshError) -> None:
    """Print what is wrong, and exit with the error's code."""
    typer.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(printable_lines(str(error)), err=True)
    sys.exit(error.exit_code)


def _first(group: BaseExceptionGroup[EventMeshError]) -> EventMeshError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
