"""`eventmesh schema freeze`, `deprecate` and `rules`."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.schema.common import AsJson, Names, owned, save, say_json, services_of
from eventmesh.errors import UsageError


def freeze(services: Names = None) -> None:
    """Write the lock files of message versions that have none yet."""
    from eventmesh.clock import SystemClock
    from eventmesh.contracts.locks import freezing
    from eventmesh.review.waivers import read_waivers
    from eventmesh.runtime.declaring.settings import load_settings

    today = SystemClock().now().date()
    waivers = read_waivers(Path.cwd() / "pyproject.toml")
    waived = {waiver.fingerprint for waiver in waivers if waiver.counts(today)}
    models = owned(services_of(services))
    for written in freezing.freeze(models, load_settings().schemas, waived=waived):
        typer.echo(f"frozen {written} in {written.path}")


def deprecate(
    name: Annotated[str, typer.Argument(help="The message's name.")],
    version: Annotated[int, typer.Argument(help="Which version of it.", min=1)],
    sunset: Annotated[
        str, typer.Option(help="The last day on which it is used, as 2026-12-31.", metavar="DATE")
    ],
) -> None:
    """Say that nobody should use a version any more after a day."""
    from eventmesh.contracts.locks.lock_folder import read_locks
    from eventmesh.review.schema_lookup import frozen
    from eventmesh.runtime.declaring.settings import load_settings

    locks = read_locks(load_settings().schemas)
    revisions = frozen(locks, name, version)
    if revisions[0].status == "retired":
        raise UsageError(f"{name} v{version} is retired: nobody sends it any more.")
    for path in locks.deprecate(revisions[0], _day(sunset)):
        typer.echo(f"deprecated {name} v{version}, to be used until {sunset}, in {path}")


def rules(
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what `check` can find, and each finding's code."""
    from eventmesh.contracts.rules import RULES
    from eventmesh.review.rulebook import rulebook

    if output is not None:
        save(output, rulebook())
    elif as_json:
        say_json(dict(RULES))
    else:
        typer.echo(rulebook(), nl=False)


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--sunset {text!r} is no day: write it as 2026-12-31.") from None
