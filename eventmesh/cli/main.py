"""`eventmesh`: collects the commands, and turns errors into one paragraph and an exit code.

An `EventMeshError` is a mistake of the user or a server that cannot be reached, so its text is
printed without a traceback, and its `exit_code` ends the process. Any other exception is a bug and
shows its traceback.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli import (
    asyncapi,
    audit,
    dashboard,
    database,
    demo,
    describe,
    dlq,
    doctor,
    outbox,
    partitions,
    pausing,
    saga,
    schema,
    simulate,
    status,
    unrouted,
    why,
    worker,
)
from eventmesh.cli.app import App
from eventmesh.cli.terminal import print_label
from eventmesh.errors import EventMeshError
from eventmesh.printable import printable_lines

app = App()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"eventmesh {version('eventmesh')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Event-driven messaging between services that own their databases.

    Commands are run in the project's root, where services are found as
    services/<name>/service.py or in [tool.eventmesh.services] of pyproject.toml.
    """


app.command()(worker.worker)
app.command()(worker.dev)
app.command()(status.status)
app.command()(describe.describe)
app.command()(why.why)
app.command()(audit.audit)
app.command()(dashboard.dashboard)
app.command()(doctor.doctor)
app.command()(pausing.pause)
app.command()(pausing.resume)
app.command()(simulate.simulate)
app.command()(asyncapi.asyncapi)
app.add_typer(schema.app, name="schema")
app.add_typer(database.app, name="db")
app.add_typer(dlq.app, name="dlq")
app.add_typer(outbox.app, name="outbox")
app.add_typer(partitions.app, name="partitions")
app.add_typer(saga.app, name="saga")
app.add_typer(unrouted.app, name="unrouted")


def main() -> None:
    """Run the command line. The README lists the exit codes."""
    silence_aiormq()
    if demo.has_shop(Path.cwd()):
        app.command()(demo.demo)
    try:
        app(prog_name="eventmesh")
    except EventMeshError as error:
        fail(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # What standard output still holds would fail again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fail(EventMeshError(f"A file or the output could not be written: {error.strerror}."))
    except KeyboardInterrupt:  # before a worker handles signals, it has not begun any work
        sys.exit(1)
    except BaseExceptionGroup as group:
        # Tasks that failed together: the first expected error explains the others.
        expected = group.subgroup(EventMeshError)
        if expected is None:
            raise
        fail(_first(expected))


def silence_aiormq() -> None:
    """It logs each error that it raises, and each lost connection with a traceback. Our own errors
    and events cover them, and Python prints them where no logs are configured."""
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)


def fail(error: EventMeshError) -> None:
    """Print the error and exit with its code."""
    print_label("Error: ", "red")
    typer.echo(printable_lines(str(error)), err=True)
    sys.exit(error.exit_code)


def _first(group: BaseExceptionGroup[EventMeshError]) -> EventMeshError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
