"""Which subscription can read which version of its messages, as `eventmesh schema check` proves it.

A verdict is about a version that may still arrive: one that is frozen and not retired, or what a
sender's model writes today. It says nothing of single messages, but of all that its schema allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic_core import to_json

from eventmesh.compat.pydantic_models.comparison import compare_model
from eventmesh.compat.verdict import Breaking, Compatible, Unknown
from eventmesh.contracts.fleet import ReaderVerdict, reader_verdicts
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.review.fleet_facts import collect_facts
from eventmesh.review.python_sources import Sources
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings

MOST_WITNESS = 2_000
"""Characters of a witness."""

Says = Literal["readable", "not readable", "not proved"]


@dataclass(frozen=True, slots=True)
class ReadingVerdict:
    """Whether these subscriptions of a service, which share a model, read a version of a message.
    `why` is what the model says of the witness, a document that the version allows, or why nothing
    could be proved; both are None where it is readable."""

    message: str
    version: int
    senders: tuple[str, ...]
    subscriptions: tuple[str, ...]
    model_version: int
    says: Says
    why: str | None = None
    witness: str | None = None


def reading_verdicts(
    services: Sequence[Service], settings: Settings, root: Path
) -> tuple[ReadingVerdict, ...]:
    """All verdicts, by message and version. It may take seconds for large schemas; UsageError for a
    database URL that is not valid."""
    locks = read_locks(root / settings.schemas)
    facts = collect_facts(services, locks, settings, Sources(root), {})
    found = (_reading_verdict(each) for each in reader_verdicts(facts, compare_model))
    return tuple(sorted(found, key=lambda each: (each.message, each.version, each.subscriptions)))


def _reading_verdict(found: ReaderVerdict) -> ReadingVerdict:
    identity = found.reading.model.__identity__
    says: Says
    why = witness = None
    match found.verdict:
        case Compatible():
            says = "readable"
        case Breaking() as breaking:
            says, why = "not readable", breaking.reason
            witness = to_json(breaking.witness, fallback=repr).decode()[:MOST_WITNESS]
        case Unknown(reason):
            says, why = "not proved", reason
    return ReadingVerdict(
        identity.name,
        found.arrival.version,
        found.arrival.publishers,
        found.reading.subscriptions,
        identity.version,
        says,
        why,
        witness,
    )
