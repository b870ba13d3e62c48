"""All checks of `eventmesh schema check`, run over the services of a project.

One mistake can be found several times: if a team changes a frozen version, the lock file differs,
and every subscriber that cannot read the result is a finding of its own. `merged` turns these into
one finding of the owner, which lists everyone whom the change breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from eventmesh.compat.pydantic_models.comparison import compare_model, compare_schemas
from eventmesh.contracts.evolution import check_versions
from eventmesh.contracts.fleet import check_fleet
from eventmesh.contracts.locks.drift import check
from eventmesh.contracts.locks.lock_folder import Locks, read_locks
from eventmesh.contracts.problem import Problem
from eventmesh.review.fleet_facts import collect_facts
from eventmesh.review.foreign_imports import foreign_imports, homes
from eventmesh.review.python_sources import Sources
from eventmesh.runtime.declaring.discovery import service_targets
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings

_UNREAD = {"EM050", "EM057"}
_BETWEEN_VERSIONS = {"EM036", "EM037", "EM039", "EM044"}
"""Causes why the owner of a message cannot read an older version of it."""
_DRIFTED = {"EM031", "EM042", "EM044"}
"""Ways in which a model differs from what was frozen."""


def review(
    services: Sequence[Service],
    *,
    root: Path,
    settings: Settings,
    today: date,
    baseline: Locks | None = None,
) -> list[Problem]:
    """All problems of the project in the folder `root`, each once, in a fixed order.

    `services` must be all services of the project, because a message that none of them publishes or
    handles is a problem. With a `baseline`, models are also compared with the locks in it.
    UsageError for a setting that is not valid.
    """
    services = sorted(services, key=lambda service: service.name)
    folder = root / settings.schemas
    locks = read_locks(folder)
    problems = [
        *locks.problems,
        *(
            problem
            for service in services
            for problem in _check_own_messages(service, locks, today, baseline)
        ),
        *_check_between_services(services, root, settings, locks),
    ]
    return sorted(merged(problems), key=lambda each: (each.rule, each.subject, each.fingerprint))


def _check_own_messages(
    service: Service, locks: Locks, today: date, baseline: Locks | None
) -> list[Problem]:
    """Check the messages that the service owns against what is frozen."""
    models = list(service.registry.owned())
    found = list(check(models, locks))
    if baseline is not None:
        found += [each for each in check(models, baseline) if each.rule in _DRIFTED]
    for model in models:
        found += check_versions(model, locks.of(model.__identity__.name), today=today)
    return found


def _check_between_services(
    services: Sequence[Service], root: Path, settings: Settings, locks: Locks
) -> list[Problem]:
    """Check what the services must agree on."""
    sources = Sources(root)
    targets = service_targets(root)
    known = homes(targets, sources.root)
    facts = collect_facts(services, locks, settings, sources, known)
    found = {service.name for service in services}
    return [
        *check_fleet(facts, compare_model, compare_schemas),
        *foreign_imports(targets, sources, of=found),
    ]


def merged(problems: Sequence[Problem]) -> list[Problem]:
    """Report each mistake once: a message that cannot be read because its owner changed it is part
    of the owner's finding."""
    found = list({problem.fingerprint: problem for problem in problems}.values())
    broken: dict[str, list[Problem]] = {}
    kept = []
    for problem in found:
        cause = _cause(problem, found) if problem.rule in _UNREAD else None
        if cause is None:
            kept.append(problem)
        else:
            broken.setdefault(cause.fingerprint, []).append(problem)
    return [_with_broken(problem, broken.get(problem.fingerprint, ())) for problem in kept]


def _cause(unread: Problem, found: Sequence[Problem]) -> Problem | None:
    """The finding about the message's owner that explains why a subscriber cannot read it."""
    name = unread.subject.partition(" ")[0]
    for problem in found:
        # Findings about a changed frozen version have no marks; those between versions have.
        changed = problem.rule in _DRIFTED and not problem.marks
        if changed and problem.subject == unread.subject:
            return problem
        is_owner = unread.parties[0] == name.partition(".")[0]
        of_versions = problem.rule in _BETWEEN_VERSIONS and problem.marks
        if is_owner and of_versions and problem.subject.partition(" ")[0] == name:
            return problem
    return None


def _with_broken(cause: Problem, broken: Sequence[Problem]) -> Problem:
    if not broken:
        return cause
    parties = dict.fromkeys([*cause.parties, *(p for each in broken for p in each.parties)])
    return replace(
        cause,
        summary=" ".join([f"{cause.summary.rstrip('.')}.", *(each.summary for each in broken)]),
        parties=tuple(parties),
        witness=cause.witness or broken[0].witness,
    )
