"""`eventmesh schema import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.schema.common import AsJson, save, say, say_json
from eventmesh.errors import Drift, UsageError


def import_(
    file: Annotated[Path, typer.Argument(help="The file with the JSON Schema.", metavar="FILE")],
    name: Annotated[str, typer.Option(help="The message, <owner>.<what>.", metavar="NAME")],
    version: Annotated[int, typer.Option(help="Its version.", min=1, metavar="N")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate a model from a JSON Schema.

    The model is one for reading: fields that the schema does not require are optional, and unknown
    fields are ignored. It is then proved that it reads everything that the schema allows. Exit code
    4: that is refuted, or could not be proved; the model is written all the same.
    """
    from eventmesh.compat.pydantic_models.comparison import compare_model
    from eventmesh.compat.verdict import Breaking, Compatible
    from eventmesh.review.bundling import bundle
    from eventmesh.review.formats.comparison import as_text, as_value
    from eventmesh.review.schema_import import import_schema
    from eventmesh.review.schema_lookup import Comparison

    if output is not None and output.exists():
        raise UsageError(f"{output} exists already. Choose a new file.")
    schema = bundle(file)
    imported = import_schema(schema, name, version)
    verdict = compare_model(schema, imported.model)
    comparison = Comparison(str(file), imported.model.__name__, verdict)
    if output is not None:
        save(output, imported.text)
    if as_json:
        say_json({"code": imported.text, "proof": as_value(comparison)})
    elif output is None:
        say(imported.text)
        # The proof is commented out, so that all of the output is Python.
        say("".join(f"# {line}".rstrip() + "\n" for line in as_text(comparison).splitlines()))
    else:
        say(as_text(comparison))
    if not isinstance(verdict, Compatible):
        reads = "does not read" if isinstance(verdict, Breaking) else "may not read"
        raise Drift(
            f"{comparison.reader} {reads} everything that {file} allows: "
            f"{verdict.reason.rstrip('.')}. Change the model by hand, unless that is never sent."
        )
