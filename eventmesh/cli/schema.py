"""`eventmesh schema`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.errors import Drift

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.contracts.message import Message

app = typer.Typer(no_args_is_help=True, help="Frozen schema versions of the messages.")

Names = Annotated[
    list[str] | None, typer.Argument(help="Services; all when none is named.", metavar="[SVC]...")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def freeze(services: Names = None) -> None:
    """Write the lock files of message versions that have none yet."""
    from eventmesh.contracts import schema
    from eventmesh.runtime.settings import load_settings

    for finding in schema.freeze(_owned(services), load_settings().schemas):
        typer.echo(f"frozen {finding.message} in {finding.path}")


@app.command()
def check(services: Names = None, as_json: AsJson = False) -> None:
    """Compare the code with the lock files; exit code 4 when a version changed or has none."""
    from eventmesh.contracts import schema
    from eventmesh.runtime.settings import load_settings

    findings = schema.check(_owned(services), load_settings().schemas)
    if as_json:
        import json

        rows = [
            {"message": f.message, "state": f.state, "path": str(f.path), "detail": f.detail}
            for f in findings
        ]
        typer.echo(json.dumps(rows, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.state:8} {finding}")
    schema.refuse_drift(findings)
    missing = [finding.message for finding in findings if finding.state == "missing"]
    if missing:
        raise Drift(
            f"{len(missing)} message version(s) are not frozen: {', '.join(missing)}. Run "
            f"`eventmesh schema freeze` and commit the files it writes."
        )


def _owned(names: list[str] | None) -> list[type[Message]]:
    from eventmesh.runtime.discovery import load_services

    services = load_services(names or [], Path.cwd())
    return [model for service in services for model in service.registry.owned()]
