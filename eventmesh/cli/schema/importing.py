"""`eventmesh schema import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.schema.common import AsJson, save, say, say_json
from eventmesh.errors import UsageError


def import_(
    file: Annotated[Path, typer.Argument(help="A JSON Schema.", metavar="FILE")],
    name: Annotated[
        str, typer.Option(help="The message's name, as its owner calls it.", metavar="NAME")
    ],
    version: Annotated[int, typer.Option(help="Which version of it.", min=1, metavar="N")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model that reads what a JSON Schema of somebody else allows, and prove that it
    does."""
    from eventmesh.compat.models import compare_model
    from eventmesh.review.bundling import bundle
    from eventmesh.review.formats.comparison import as_text, as_value
    from eventmesh.review.schema_import import import_schema

    if output is not None and output.exists():
        raise UsageError(f"{output} is there already: name a new file.")
    schema = bundle(file)
    imported = import_schema(schema, name, version)
    verdict = compare_model(schema, imported.model)
    told = str(file), imported.model.__name__, verdict
    if output is not None:
        save(output, imported.text)
    if as_json:
        say_json({"code": imported.text, "proof": as_value(*told)})
        return
    if output is None:
        say(imported.text)
    typer.echo(_commented(as_text(*told)) if output is None else as_text(*told), nl=False)


def _commented(text: str) -> str:
    """As a comment, so that all of the output is Python."""
    from eventmesh.printable import printable_lines

    return "".join(f"# {line}".rstrip() + "\n" for line in printable_lines(text).splitlines())
