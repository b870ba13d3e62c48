"""`eventmesh schema check`."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.schema.common import Names, owned, sagas_of, save, say, services_of
from eventmesh.errors import Drift
from eventmesh.printable import printable, printable_lines

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from collections.abc import Sequence

    from eventmesh.contracts.problem import Problem
    from eventmesh.review.baseline import Baseline
    from eventmesh.review.report import Report
    from eventmesh.runtime.declaring.service import DeclaredService as Service
    from eventmesh.runtime.declaring.settings import Settings


class Format(StrEnum):
    """How the findings are written."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"
    JUNIT = "junit"
    SARIF = "sarif"


def check(
    services: Names = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="GIT_REV",
            help="Also report lock files that were deleted or replaced since this git revision.",
        ),
    ] = None,
    written_as: Annotated[
        Format,
        typer.Option("--format", help="The format of the report.", metavar="|".join(Format)),
    ] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Write what is missing: version numbers, upcasters, tests, lock files."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
) -> None:
    """Prove that all services can read each other's messages, and that running sagas go on.

    Exit code 0: there are no errors. Exit code 4: there are, and the report says what to do about
    each of them. Findings about other services than the named ones are left out.
    """
    from eventmesh.review.baseline import read_baseline
    from eventmesh.review.repair import Project, repair
    from eventmesh.runtime.declaring.settings import load_settings
    from eventmesh.saga.shape_repair import repair_shapes

    settings, all_services = load_settings(), services_of(None)
    if services:
        services_of(services)  # a name that does not exist is an error before any work
    written_as = Format.JSON if as_json else written_as
    baseline = None if against is None else read_baseline(settings.schemas, against)
    chosen = [each for each in all_services if not services or each.name in services]
    problems = _find_problems(all_services, settings, baseline)
    if services:
        problems = [problem for problem in problems if _concerns(problem, services)]
    report = _make_report(problems, chosen, is_complete=not services)
    _print_report(report, written_as, output)

    left = [finding.problem for finding in report.failures]
    if fix:
        root = Path.cwd()
        project = Project(root, root / settings.schemas, owned(chosen), baseline)
        repairs = repair(left, project)
        shapes = repair_shapes(left, sagas_of(chosen), settings.schemas)
        done = [*repairs.done, *(f"froze {lock.path}" for lock in shapes.written)]
        for line in [*done, *(f"left to you: {line}" for line in (*repairs.left, *shapes.left))]:
            typer.echo(printable(line), err=written_as is not Format.TEXT)
        solved = repairs.solved | shapes.solved
        left = [problem for problem in left if problem.fingerprint not in solved]
    if left:
        where = "above" if output is None else f"in {output}"
        raise Drift(_describe_failure(left, where, was_repaired=fix))


def _find_problems(
    services: Sequence[Service], settings: Settings, baseline: Baseline | None
) -> list[Problem]:
    from eventmesh.clock import SystemClock
    from eventmesh.review.baseline import find_lost_locks, locks_at
    from eventmesh.review.checks import review
    from eventmesh.review.locations import locate
    from eventmesh.saga.evolution import check_sagas

    problems = review(
        services,
        root=Path(),  # relative, so that the report has paths as a user would write them here
        settings=settings,
        today=SystemClock().now().date(),
        baseline=None if baseline is None else locks_at(baseline, settings.schemas),
    )
    problems += check_sagas(sagas_of(services), settings.schemas)
    if baseline is not None:
        problems += find_lost_locks(baseline, settings.schemas)
    return locate(problems, owned(services), Path.cwd())


def _concerns(problem: Problem, services: Sequence[str]) -> bool:
    return problem.subject.partition(".")[0] in services or any(
        party in services for party in problem.parties
    )


def _make_report(
    problems: Sequence[Problem], services: Sequence[Service], *, is_complete: bool
) -> Report:
    """The report, with the project's waivers applied.

    If only some services were checked, a waiver without a finding may belong to another service.
    """
    from eventmesh.clock import SystemClock
    from eventmesh.review.baseline import path_in_repository
    from eventmesh.review.report import apply_waivers, make_report, rebase
    from eventmesh.review.waivers import read_waivers

    root, today = Path.cwd(), SystemClock().now().date()
    findings = apply_waivers(problems, read_waivers(root / "pyproject.toml"), today)
    if not is_complete:
        findings = [finding for finding in findings if finding.problem.rule != "EM061"]
    messages = [str(model.__identity__) for model in owned(services)]
    sagas = [f"{saga.name} v{saga.version}" for saga in sagas_of(services)]
    report = make_report(findings, messages + sagas)
    prefix = path_in_repository(root)
    return replace(report, placed=tuple(rebase(each, prefix) for each in report.findings))


def _print_report(report: Report, written_as: Format, output: Path | None) -> None:
    from eventmesh.review.formats import FORMATS

    text = FORMATS[written_as](report)
    if output is not None:
        save(output, printable_lines(text) if written_as is Format.TEXT else text)
    elif written_as is Format.TEXT:
        say(text)
    else:
        typer.echo(text, nl=False)


def _describe_failure(problems: Sequence[Problem], where: str, *, was_repaired: bool) -> str:
    """The error with which the check fails: which rules, and the next step. `where` is the report,
    which counts and explains the findings."""
    subjects: dict[str, dict[str, None]] = {}
    for problem in problems:
        subjects.setdefault(problem.rule, {})[" ".join(problem.subject.split())] = None
    rules = []
    for rule, names in subjects.items():
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        rules.append(f"{rule}: {', '.join([*names][:10])}{more}")
    if was_repaired:
        advice = "What could be written was written. Do what is left, and check again."
    else:
        fixes = {problem.fix for problem in problems}
        advice = fixes.pop() if len(fixes) == 1 else f"The report {where} says what to do."
    return printable(f"The check failed. {'; '.join(rules)}. {advice}")
