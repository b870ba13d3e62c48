"""`eventmesh asyncapi`: writes the AsyncAPI document of services."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from faststream.specification import Specification

Names = Annotated[
    list[str] | None, typer.Argument(help="Services; all if none is named.", metavar="SERVICE")
]


class Format(StrEnum):
    """The format of the document."""

    JSON = "json"
    YAML = "yaml"


def asyncapi(
    services: Names = None,
    written_as: Annotated[
        Format, typer.Option("--format", help="Format of the document.", metavar="json|yaml")
    ] = Format.JSON,
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
) -> None:
    """Write the AsyncAPI 3 document of services.

    It lists the messages that they send and receive.
    """
    text = _spell(_describe(services or []), written_as)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"Cannot write {output}: {error.strerror}.") from error


def _describe(names: list[str]) -> Specification:
    from eventmesh.integrations.faststream.asyncapi import document
    from eventmesh.runtime.declaring.discovery import load_services

    found = load_services(names, Path.cwd())
    project, version = _project(Path.cwd() / "pyproject.toml")
    spelled = ", ".join(sorted(service.name for service in found))
    return document(
        found,
        title=spelled if names else project or spelled,
        version=version,
        description=f"What is sent and received by: {spelled}. Messages are CloudEvents 1.0.",
    )


def _project(path: Path) -> tuple[str, str]:
    """Name and version from pyproject.toml, with defaults where it does not say."""
    import tomllib

    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        project = {}
    return str(project.get("name", "")), str(project.get("version", "0.0.0"))


def _spell(document: Specification, written_as: Format) -> str:
    if written_as is Format.YAML:
        return document.to_yaml()
    return json.dumps(document.to_jsonable(), indent=2, ensure_ascii=False) + "\n"
