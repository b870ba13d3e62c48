"""The whole mesh: what all services together must keep to, as pure rules over facts."""

from __future__ import annotations

from eventmesh.contracts.fleet.databases import shared_databases
from eventmesh.contracts.fleet.facts import DatabaseUse, Facts, Frozen, Publication, Reading
from eventmesh.contracts.fleet.owners import other_identities, two_owners
from eventmesh.contracts.fleet.publishing import command_handlers, unpublished
from eventmesh.contracts.fleet.readers import FrozenJudge, Judge, misread_elsewhere, unreadable
from eventmesh.contracts.problem import Problem

__all__ = ["DatabaseUse", "Facts", "Frozen", "Publication", "Reading", "check_fleet"]


def check_fleet(facts: Facts, judge: Judge, judge_frozen: FrozenJudge) -> list[Problem]:
    """All that is wrong between the services, each fault once: where it is not clear what a message
    is, or whose, nothing else is said of it."""
    unclear = [*two_owners(facts), *other_identities(facts)]
    subjects = {(problem.subject, party) for problem in unclear for party in problem.parties}

    def is_clear(problem: Problem) -> bool:
        message = problem.subject.partition(" ")[0]
        return not any(
            {(message, party), (f"service {party}", party)} & subjects for party in problem.parties
        )

    rest = [
        *unpublished(facts),
        *command_handlers(facts),
        *unreadable(facts, judge),
        *misread_elsewhere(facts, judge_frozen),
    ]
    return [*unclear, *filter(is_clear, rest), *shared_databases(facts)]
