"""`eventmesh saga verify`: proves that sagas come to an end, whatever happens."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.errors import UsageError
from eventmesh.printable import printable_lines

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from eventmesh.saga.definition import Definition

Names = Annotated[
    list[str] | None,
    typer.Argument(help="Services; all if none is named.", metavar="SERVICE"),
]


def verify(
    services: Names = None,
    states: Annotated[
        int,
        typer.Option(min=1, help="Stop after N states of a saga.", metavar="N"),
    ] = 80_000,
    deviations: Annotated[
        int | None,
        typer.Option(min=0, help="Explore stories with at most N deviations.", metavar="N"),
    ] = None,
    operator_actions: Annotated[
        int,
        typer.Option(min=0, help="How often an operator acts.", metavar="N"),
    ] = 1,
    function_errors: Annotated[
        int,
        typer.Option(
            min=0, help="How often a function of the saga fails in one story.", metavar="N"
        ),
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove that sagas come to an end, whatever happens.

    Every order of answers, time-outs, dead letters, duplicates, errors of the
    saga's functions and operator's actions is explored, with the rules by
    which sagas run. No server is needed, and no function of a saga is called.
    The exit code is 1 if something does not hold, or can never happen.

    \b
    Stories are explored by their deviations: a time-out, an answer that is
    overtaken, a dead letter, a replay, a duplicate, a skipped step. If the
    states run out, the report says up to how many all stories were explored.

    \b
    Example:
      eventmesh saga verify orders --deviations 3
    """
    from eventmesh.saga.verify import Bounds
    from eventmesh.saga.verify import verify as verify_saga

    bounds = Bounds(states, operator_actions, function_errors, deviations)
    gc.disable()  # states are many small tuples, all of them kept: a third of the time
    reports = [verify_saga(definition, bounds) for definition in _definitions(services or [])]
    if as_json:
        typer.echo(json.dumps([report.to_jsonable() for report in reports], indent=2))
    else:
        for report in reports:
            typer.echo(printable_lines("\n".join(report.lines())))
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


def _definitions(names: Sequence[str]) -> list[Definition]:
    from eventmesh.runtime.declaring.discovery import load_services
    from eventmesh.saga.coordinator import Coordinator

    services = load_services(names, Path.cwd())
    found = [
        each.definition
        for service in services
        for each in service.sagas.values()
        if isinstance(each, Coordinator)
    ]
    if not found:
        searched = ", ".join(service.name for service in services)
        raise UsageError(f"There is no saga in {searched}: nothing is given to service.include.")
    return found
