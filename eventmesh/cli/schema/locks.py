"""`eventmesh schema freeze`, `deprecate` and `rules`."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.schema.common import (
    AsJson,
    Names,
    owned,
    sagas_of,
    save,
    say_json,
    services_of,
)
from eventmesh.errors import UsageError


def freeze(services: Names = None) -> None:
    """Write lock files for versions of messages and sagas that have none yet.

    A change within a version of a message that is compatible in both directions is added as a
    revision of it. Any other change is an error: it needs a new version.
    """
    from eventmesh.clock import SystemClock
    from eventmesh.contracts.locks import freezing
    from eventmesh.review.waivers import read_waivers
    from eventmesh.runtime.declaring.settings import load_settings
    from eventmesh.saga import shape_locks

    today = SystemClock().now().date()
    waivers = read_waivers(Path.cwd() / "pyproject.toml")
    waived = {waiver.fingerprint for waiver in waivers if waiver.is_active(today)}
    chosen, root = services_of(services), load_settings().schemas
    sagas = sagas_of(chosen)
    shape_locks.raise_changes(sagas, root)  # before anything is written
    for written in freezing.freeze(owned(chosen), root, waived=waived):
        typer.echo(f"frozen {written} in {written.path}")
    for lock in shape_locks.freeze(sagas, root):
        typer.echo(f"frozen {lock} in {lock.path}")


def deprecate(
    name: Annotated[str, typer.Argument(help="The name of the message.", metavar="NAME")],
    version: Annotated[int, typer.Argument(help="The version to deprecate.", min=1, metavar="N")],
    sunset: Annotated[
        str, typer.Option(help="The last day of its use, such as 2026-12-31.", metavar="DATE")
    ],
) -> None:
    """Mark a version as deprecated, with the last day of its use.

    After that day `eventmesh schema check` warns until the version is retired.
    """
    from eventmesh.contracts.locks.lock_folder import read_locks
    from eventmesh.review.schema_lookup import find_revisions
    from eventmesh.runtime.declaring.settings import load_settings

    locks = read_locks(load_settings().schemas)
    revisions = find_revisions(locks, name, version)
    if revisions[0].status == "retired":
        raise UsageError(f"{name} v{version} is retired already, and cannot be deprecated.")
    for path in locks.deprecate(revisions[0], _day(sunset)):
        typer.echo(f"deprecated {name} v{version} (sunset {sunset}) in {path}")


def rules(
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the rule codes of `schema check`."""
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
        raise UsageError(f"--sunset {text!r} is not a date. Write it like 2026-12-31.") from None
