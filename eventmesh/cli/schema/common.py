"""Arguments and output that several commands of `eventmesh schema` use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.errors import UsageError
from eventmesh.printable import printable_lines

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from collections.abc import Sequence

    from eventmesh.contracts.message import Message
    from eventmesh.runtime.declaring.service import DeclaredService as Service
    from eventmesh.saga.definition import Definition

Names = Annotated[
    list[str] | None, typer.Argument(help="Services; all if none is named.", metavar="SERVICE")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def services_of(names: list[str] | None) -> list[Service]:
    """The named services, or all services of the project."""
    from eventmesh.runtime.declaring.discovery import load_services

    return load_services(names or [], Path.cwd())


def owned(services: Sequence[Service]) -> list[type[Message]]:
    """The models of messages that these services own, whose schemas they freeze."""
    return [model for service in services for model in service.registry.owned()]


def sagas_of(services: Sequence[Service]) -> list[Definition]:
    """The sagas of these services, whose shapes they freeze."""
    from eventmesh.saga.coordinator import Coordinator

    return [
        each.definition
        for service in services
        for each in service.sagas.values()
        if isinstance(each, Coordinator)
    ]


def say(text: str) -> None:
    """Print lines for people; control characters in them are escaped."""
    typer.echo(printable_lines(text), nl=False)


def say_json(value: Any) -> None:
    """Print a value for programs."""
    from eventmesh.review.formats.common import dumps

    typer.echo(dumps(value))


def save(path: Path, text: str) -> None:
    """Write to a file that the user named, or UsageError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from error
