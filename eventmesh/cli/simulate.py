"""`eventmesh simulate`: services under faults and orders of events that production may see."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.terminal import console
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
    from eventmesh.testing.simulation.search import Body, Failure, Options, Report

PLAIN_EVERY = 10.0
"""Seconds between lines of progress where there is no terminal."""


def simulate(
    services: Annotated[
        list[str] | None,
        typer.Argument(help="Services; all if none is named.", metavar="SERVICE"),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="How many runs to try.", metavar="N")
    ] = 1000,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Stop after this time.", metavar="N")
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(
            "--workload",
            help="A Python file with `async def workload(mesh)`, and perhaps `predicates(mesh)`.",
            metavar="FILE",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Workers of each service.", metavar="N")
    ] = 1,
    first_seed: Annotated[
        int, typer.Option("--first-seed", min=0, help="Begin with this seed.", metavar="N")
    ] = 0,
    plan: Annotated[
        str | None,
        typer.Option("--replay", help="Run this plan of a failure only.", metavar="PLAN"),
    ] = None,
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Dead letters are not a failure.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run services in virtual time, again and again, with other faults each time.

    Workers are killed between any two steps, stand still, and lose their
    connections; servers are away; messages come twice; calls take times of
    their own. Afterwards, nothing may be lost or done twice, every saga must
    have ended, and what the workload's predicates say must hold. No server is
    used: databases are SQLite files in memory, and the broker is in memory.

    Without a workload, messages are generated of each model that the services
    take and none of them publishes. Handlers may reject these, so dead letters
    are not a failure then. What handlers print is not shown.

    Needs the extra: pip install 'eventmesh[testing]'. Exit code 1 if a run
    failed, with the fewest faults that it takes and the command that runs it
    again; 2 for a mistake in a service, a workload or an option.
    """
    with _missing_named():
        from eventmesh.runtime.declaring.discovery import load_services
        from eventmesh.testing.simulation import report as reports
        from eventmesh.testing.simulation.search import Options
        from eventmesh.testing.simulation.workload import generated, load_workload

        loaded = load_services(services or [], Path.cwd())
        found = load_workload(workload.absolute()) if workload else generated(loaded)
    options = Options(
        seeds=seeds,
        seconds=None if minutes is None else minutes * 60,
        allows_dead_letters=dead_letters or workload is None,
        first=first_seed,
    )
    report, failure = _run(found.body(loaded, workers), options, plan)
    if failure is not None and failure.is_mistake:
        raise failure.error
    again = _command(services or [], workload, workers, failure, is_tolerant=dead_letters)
    if as_json:
        document = reports.as_document(report, failure, again)
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        out = console()
        for line in reports.lines(report, failure, again):
            out.print(printable(line), soft_wrap=True)
    if failure is not None:
        raise typer.Exit(1)


def _run(body: Body, options: Options, plan: str | None) -> tuple[Report | None, Failure | None]:
    """Run all seeds, or only this plan: what was tried, and what failed."""
    from eventmesh.runtime.declaring.settings import load_settings
    from eventmesh.testing.mesh.databases import temporary_workshop
    from eventmesh.testing.mesh.running import make_mesh
    from eventmesh.testing.simulation.plan import Plan
    from eventmesh.testing.simulation.search import replay, simulate

    settings = load_settings()
    with temporary_workshop() as workshop, _silenced(), _progress(options.seeds) as progress:

        def make() -> VirtualMesh:
            return make_mesh(workshop, settings)

        if plan is not None:
            return None, replay(body, make, Plan.parse(plan), options)
        report = simulate(body, make, options, progress)
        return report, report.failure


@contextmanager
def _missing_named() -> Iterator[None]:
    """UsageError for a package of the extra that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("time_machine", "hypothesis", "pytest"):
            raise
        raise UsageError(
            f"`eventmesh simulate` needs {error.name}: pip install 'eventmesh[testing]'."
        ) from None


@contextmanager
def _silenced() -> Iterator[None]:
    """While the context is open, what handlers print goes nowhere: a thousand runs of it would
    bury the report."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123  # not a path of the user's
        yield


@contextmanager
def _progress(seeds: int) -> Iterator[Callable[[Report], None]]:
    """Shows how far it is, on standard error."""
    from rich.console import Console

    err = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    if err.is_terminal:
        with err.status("starting") as status:
            yield lambda report: status.update(_so_far(report, seeds))
        return
    said = 0.0

    def say(report: Report) -> None:
        nonlocal said
        if report.seconds - said >= PLAIN_EVERY:
            said = report.seconds
            typer.echo(_so_far(report, seeds), err=True)

    yield say


def _so_far(report: Report, seeds: int) -> str:
    return (
        f"{report.runs:,} of {seeds:,} runs in {report.seconds:.0f} s, "
        f"{report.faults.total():,} faults"
    )


def _command(
    services: list[str],
    workload: Path | None,
    workers: int,
    failure: Failure | None,
    *,
    is_tolerant: bool,
) -> str:
    """What runs the failure again; empty without one."""
    if failure is None:
        return ""
    parts = ["eventmesh", "simulate", *services]
    parts += ["--workload", str(workload)] * (workload is not None)
    parts += ["--workers", str(workers)] * (workers != 1)
    parts += ["--dead-letters"] * is_tolerant
    return shlex.join([*parts, "--replay", str(failure.plan)])
