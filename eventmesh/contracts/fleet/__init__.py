"""The rules for all services together, as pure functions of facts about them.

Every event that is subscribed to is published, every command has one handler, every subscriber can
read every version that may still arrive, and a database is shared only if that is declared.
"""

from __future__ import annotations

from eventmesh.contracts.fleet.databases import shared_databases
from eventmesh.contracts.fleet.facts import DatabaseUse, Facts, Frozen, Publication, Reading
from eventmesh.contracts.fleet.owners import other_identities, two_owners
from eventmesh.contracts.fleet.publishing import command_handlers, unpublished
from eventmesh.contracts.fleet.readers import (
    FrozenJudge,
    Judge,
    ReaderVerdict,
    misread_elsewhere,
    reader_verdicts,
    unreadable,
)
from eventmesh.contracts.problem import Problem

__all__ = [
    "DatabaseUse",
    "Facts",
    "Frozen",
    "Publication",
    "ReaderVerdict",
    "Reading",
    "check_fleet",
    "reader_verdicts",
]


def check_fleet(facts: Facts, judge: Judge, judge_frozen: FrozenJudge) -> list[Problem]:
    """All problems between the services.

    If two services disagree about the owner or the kind of a message, that is the only problem
    reported about it, because all others would follow from it.
    """
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
