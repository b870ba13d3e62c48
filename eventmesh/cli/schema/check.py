"""`eventmesh schema check`."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.schema.common import Names, owned, save, say, services_of
from eventmesh.errors import Drift

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from collections.abc import Sequence

    from eventmesh.contracts.problem import Problem
    from eventmesh.review.baseline import Baseline
    from eventmesh.review.repair import Repairs
    from eventmesh.review.report import Report
    from eventmesh.runtime.declaring.service import Service
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
        typer.Option(metavar="GIT_REV", help="Also compare with the lock files of a revision."),
    ] = None,
    written_as: Annotated[
        Format,
        typer.Option("--format", help="How the findings are written.", metavar="|".join(Format)),
    ] = Format.TEXT,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    fix: Annotated[
        bool, typer.Option(help="Write what can be written: versions, upcasters, tests, locks.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead of standard output.", metavar="FILE"),
    ] = None,
) -> None:
    """Prove that nobody breaks a neighbour; exit code 4 when somebody does."""
    from eventmesh.runtime.declaring.settings import load_settings

    settings, found = load_settings(), services_of(None)
    if services:
        services_of(services)  # names that are none are told before anything is done
    baseline = _baseline(settings, against)
    problems = [
        problem
        for problem in _problems(found, settings, baseline)
        if not services or _concerns(problem, services)
    ]
    chosen = [service for service in found if not services or service.name in services]
    report = _report(problems, chosen, every=not services)
    _tell(report, Format.JSON if as_json else written_as, output)
    if fix:
        repairs = _repair(report, chosen, settings, baseline)
        _tell_repairs(repairs, aside=as_json or written_as is not Format.TEXT)
        left = [f.problem for f in report.failures if f.problem.fingerprint not in repairs.solved]
        _fail(left, "What could be written is written; do what is left, and check again.")
    else:
        _fail([finding.problem for finding in report.failures])


def _baseline(settings: Settings, revision: str | None) -> Baseline | None:
    from eventmesh.review.baseline import read_baseline

    return None if revision is None else read_baseline(settings.schemas, revision)


def _problems(
    services: Sequence[Service], settings: Settings, baseline: Baseline | None
) -> list[Problem]:
    from eventmesh.clock import SystemClock
    from eventmesh.review.baseline import locks_then, lost
    from eventmesh.review.checks import review
    from eventmesh.review.locations import placed

    today = SystemClock().now().date()
    # A relative root, so that paths are told as one would write them here.
    look = partial(review, services, root=Path(), settings=settings, today=today)
    if baseline is None:
        problems = look()
    else:
        then = locks_then(baseline, settings.schemas)
        problems = [*look(baseline=then), *lost(baseline, settings.schemas)]
    return placed(problems, owned(services), Path.cwd())


def _concerns(problem: Problem, services: Sequence[str]) -> bool:
    return problem.subject.partition(".")[0] in services or any(
        party in services for party in problem.parties
    )


def _report(problems: Sequence[Problem], services: Sequence[Service], *, every: bool) -> Report:
    """What was found, with what the project's waivers say; of a part of the services, it cannot be
    told that a waiver is for nothing."""
    from dataclasses import replace

    from eventmesh.clock import SystemClock
    from eventmesh.review.baseline import prefix
    from eventmesh.review.report import judged, rebased, report_of
    from eventmesh.review.waivers import read_waivers

    root = Path.cwd()
    today = SystemClock().now().date()
    findings = judged(problems, read_waivers(root / "pyproject.toml"), today)
    if not every:
        findings = [finding for finding in findings if finding.problem.rule != "EM061"]
    report = report_of(findings, [str(model.__identity__) for model in owned(services)])
    inside = prefix(root)
    return replace(report, placed=tuple(rebased(f, inside) for f in report.findings))


def _tell(report: Report, written_as: Format, output: Path | None) -> None:
    from eventmesh.printable import printable_lines
    from eventmesh.review.formats import FORMATS

    text = FORMATS[written_as](report)
    if output is not None:
        save(output, printable_lines(text) if written_as is Format.TEXT else text)
    elif written_as is Format.TEXT:
        say(text)
    else:
        typer.echo(text, nl=False)


def _repair(
    report: Report,
    services: Sequence[Service],
    settings: Settings,
    baseline: Baseline | None,
) -> Repairs:
    from eventmesh.review.repair import Project, repair

    root = Path.cwd()
    project = Project(root, root / settings.schemas, owned(services), baseline)
    return repair([finding.problem for finding in report.failures], project)


def _tell_repairs(repairs: Repairs, *, aside: bool) -> None:
    from eventmesh.printable import printable

    for line in repairs.done:
        typer.echo(printable(line), err=aside)
    for line in repairs.left:
        typer.echo(printable(f"left to you: {line}"), err=aside)


def _fail(problems: Sequence[Problem], advice: str = "") -> None:
    """Drift that names each problem, and says what to do where that is the same for all."""
    if not problems:
        return
    from eventmesh.printable import printable

    by_rule: dict[str, list[str]] = {}
    for problem in problems:
        by_rule.setdefault(problem.rule, []).append(problem.subject)
    named = "; ".join(
        f"{rule}: {_listed(list(dict.fromkeys(subjects)))}" for rule, subjects in by_rule.items()
    )
    fixes = {problem.fix for problem in problems}
    advice = advice or (
        fixes.pop() if len(fixes) == 1 else "What to do is written with each finding."
    )
    raise Drift(printable(f"{len(problems)} error(s): {' '.join(named.split())}. {advice}"))


def _listed(subjects: list[str]) -> str:
    more = f" and {len(subjects) - 10} more" if len(subjects) > 10 else ""
    return ", ".join(subjects[:10]) + more
