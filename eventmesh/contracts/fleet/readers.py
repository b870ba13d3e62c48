"""Whether every subscriber reads what may still arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from eventmesh.compat.verdict import Breaking, Compatible, Unknown, Verdict
from eventmesh.contracts.fleet.arriving_versions import (
    Arrival,
    Form,
    arrivals,
    different,
    own_forms,
)
from eventmesh.contracts.fleet.facts import Facts, Reading
from eventmesh.contracts.fleet.wording import listed, once, reader_of
from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place, Problem, Witness
from eventmesh.contracts.versions import readable_versions, upcast

Cast = Callable[[Any], Any]


class Judge(Protocol):
    """Whether what a writer's schema allows is read by a model: `compare_model`."""

    def __call__(
        self,
        writer: dict[str, Any],
        reader: type[Message],
        *,
        cast: Cast | None,
        samples: Sequence[Any],
        writer_model: type[Message] | None,
    ) -> Verdict:
        """The verdict, after the cast; samples are what was once written."""
        ...


FrozenJudge = Callable[[dict[str, Any], dict[str, Any]], Verdict]
"""The same for a reader of which only the frozen schema is known: `compare_schemas`."""


def unreadable(facts: Facts, judge: Judge) -> Iterator[Problem]:
    """EM050 where a document is found that may still arrive and that a subscriber cannot read;
    EM057 where neither that nor the opposite is proved. Once for each subscriber and version, and
    for each sender of a command whose model alone is at fault."""
    for reading in facts.readings:
        at_fault: set[int] = set()  # versions that the reader itself does not read
        for arrival in arrivals(facts, reading):
            if arrival.version in at_fault:
                continue
            for verdict, form in _refused(reading.model, arrival, judge):
                if arrival.frozen:
                    at_fault.add(arrival.version)
                yield _unreadable(reading, arrival, form, verdict)


def misread_elsewhere(facts: Facts, judge: FrozenJudge) -> Iterator[Problem]:
    """The same for a command to a service that is not among those found: its lock file reads it."""
    for sent in facts.publications:
        identity = sent.model.__identity__
        locks = facts.unretired(identity.name)
        if identity.kind == "event" or identity.owner in facts.services or not locks:
            continue
        same = [lock for lock in locks if lock.version == sent.writes]
        lock = (same or locks)[-1]
        for form in own_forms(sent, facts.frozen.of(identity.name)):
            verdict: Verdict = Unknown("what its downcasters end in has no lock file")
            if form.schema is not None:
                verdict = judge(form.schema, lock.reader)
            if isinstance(verdict, Compatible):
                continue
            yield _problem(
                f"{identity.name} v{sent.writes}",
                f"Version {sent.writes}, which {sent.service} sends ({form.source}), "
                f"{_cannot(verdict)} by {identity.owner}, of which only lock files are known, as "
                f"{lock}{_reason(verdict)}.",
                f"In {sent.service}: send what {lock} reads; or update the lock files of "
                f"{identity.owner}.",
                (identity.owner, sent.service),
                sent.place,
                verdict,
            )


def _refused(
    model: type[Message], arrival: Arrival, judge: Judge
) -> list[tuple[Breaking | Unknown, Form]]:
    """The most telling verdict against the model, if there is one."""
    unknown: list[tuple[Breaking | Unknown, Form]] = []
    for form in different(arrival.forms):
        if form.schema is None:
            verdict: Verdict = Unknown(f"version {arrival.version} has no lock file")
        else:
            verdict = judge(
                form.schema,
                model,
                cast=_cast(model, arrival.version),
                samples=form.samples,
                writer_model=form.model,
            )
        if isinstance(verdict, Breaking):
            return [(verdict, form)]
        if isinstance(verdict, Unknown):
            unknown.append((verdict, form))
    return unknown[:1]


def _cast(model: type[Message], version: int) -> Cast | None:
    """What happens to data of this version before the model reads it."""
    if version == model.__identity__.version or version not in readable_versions(model):
        return None
    return lambda data: upcast(model, data, version)


def _unreadable(
    reading: Reading, arrival: Arrival, form: Form, verdict: Breaking | Unknown
) -> Problem:
    identity = reading.model.__identity__
    senders = listed(arrival.publishers) or "a sender"
    return _problem(
        f"{identity.name} v{arrival.version}",
        f"Version {arrival.version}, which {senders} may still send ({form.source}), "
        f"{_cannot(verdict)} by {reader_of(reading)} with {reading.model.__name__} (version "
        f"{identity.version}){_reason(verdict)}.",
        _fix(reading, arrival, verdict),
        once(reading.service, *arrival.publishers),
        reading.place,
        verdict,
    )


def _cannot(verdict: Breaking | Unknown) -> str:
    return "cannot be read" if isinstance(verdict, Breaking) else "is not known to be read"


def _reason(verdict: Breaking | Unknown) -> str:
    return f": {verdict.reason.rstrip('.')}" if verdict.reason else ""


def _problem(
    subject: str,
    summary: str,
    fix: str,
    parties: tuple[str, ...],
    place: Place | None,
    verdict: Breaking | Unknown,
) -> Problem:
    return Problem(
        "EM050" if isinstance(verdict, Breaking) else "EM057",
        "error",
        subject,
        summary,
        fix,
        parties,
        place,
        Witness(verdict.witness, verdict.reason) if isinstance(verdict, Breaking) else None,
        verdict.changes,
    )


def _fix(reading: Reading, arrival: Arrival, verdict: Breaking | Unknown) -> str:
    identity, model = reading.model.__identity__, reading.model.__name__
    version, reader = arrival.version, reading.service
    sender = listed(arrival.publishers) or identity.owner
    fields = [change.field for change in verdict.changes if change.field]
    if version > identity.version:
        mine = f"read version {version} with {model}, or make optional what it misses"
        theirs = (
            f"write version {identity.version} until then, by service.publisher(…, version="
            f"{identity.version}) and a downcaster"
        )
    elif version < identity.version and version not in readable_versions(reading.model):
        mine = (
            f"write @{model}.upcaster(from_version={version}), or make optional what version "
            f"{version} has not"
        )
        theirs = f"retire version {version} when `eventmesh schema inventory` finds none of it"
    elif version < identity.version:
        mine = f"correct the upcasters of {model} from version {version} on"
        theirs = f"retire version {version} when `eventmesh schema inventory` finds none of it"
    else:
        mine = f"let {model} take what is written{f' in {fields[0]}' if fields else ''}"
        theirs = "keep writing what was read, or give the change a version of its own"
    if not arrival.frozen:
        theirs = f"send only what {model} reads"
    unsure = "" if isinstance(verdict, Breaking) else " Or show that it is read, and waive this."
    if sender == reader:
        return f"In {reader}: {mine}; or {theirs}.{unsure}"
    return f"In {reader}: {mine}. Or in {sender}: {theirs}.{unsure}"
