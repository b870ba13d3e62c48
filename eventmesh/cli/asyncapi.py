"""`eventmesh asyncapi`."""

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
    list[str] | None, typer.Argument(help="Services; all when none is named.", metavar="[SVC]...")
]


class Format(StrEnum):
    """How the document is written."""

    JSON = "json"
    YAML = "yaml"


def asyncapi(
    services: Names = None,
    written_as: Annotated[
        Format, typer.Option("--format", help="How the document is written.")
    ] = Format.JSON,
    output: Annotated[
        Path | None, typer.Option(help="A file to write, instead of standard output.")
    ] = None,
) -> None:
    """Write the AsyncAPI 3 document of some services: what they send and receive."""
    text = _spell(_describe(services or []), written_as)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}.") from error


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
    """Name and version of the project, where its pyproject.toml tells them."""
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
