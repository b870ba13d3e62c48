"""Every subscriber can read every version of its messages that may still arrive."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from eventmesh.compat.verdict import Breaking, Compatible, Unknown, Verdict
from eventmesh.contracts.fleet.arriving_versions import (
    ArrivingVersion,
    Form,
    arriving_versions,
    distinct_forms,
    own_forms,
)
from eventmesh.contracts.fleet.facts import Facts, Reading
from eventmesh.contracts.fleet.wording import listed, once, reader_of
from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place, Problem, Witness
from eventmesh.contracts.versions import readable_versions, upcast

Cast = Callable[[Any], Any]


class Judge(Protocol):
    """Decides whether a model reads everything that a writer's schema allows: `compare_model`."""

    def __call__(
        self,
        writer: dict[str, Any],
        reader: type[Message],
        *,
        cast: Cast | None,
        samples: Sequence[Any],
        writer_model: type[Message] | None,
    ) -> Verdict:
        """The verdict; `cast` is applied to each document first, `samples` were really written."""
        ...


FrozenJudge = Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], Verdict]
"""The same for a reader that is known by its frozen schemas only, of what it reads and of what it
writes: `compare_schemas`."""


def unreadable(facts: Facts, judge: Judge) -> Iterator[Problem]:
    """EM050 for a document that may still arrive and that a subscriber cannot read; EM057 if that
    could be neither proved nor refuted.

    There is at most one problem for each subscriber and version, and one for each sender of a
    command whose model differs from what is frozen.
    """
    for each in reader_verdicts(facts, judge):
        if each.form is not None and not isinstance(each.verdict, Compatible):
            yield _unreadable(each.reading, each.arrival, each.form, each.verdict)


@dataclass(frozen=True, slots=True)
class ReaderVerdict:
    """Whether a subscriber reads a version that may still arrive; `form` is the one of its forms
    that it does not read, or is not proved to read."""

    reading: Reading
    arrival: ArrivingVersion
    verdict: Verdict
    form: Form | None


def reader_verdicts(facts: Facts, judge: Judge) -> Iterator[ReaderVerdict]:
    """A verdict for each subscriber and version; of a version that is frozen and not readable, only
    the one on what is frozen."""
    for reading in facts.readings:
        reported: set[int] = set()  # frozen versions that the reader cannot read
        for arrival in arriving_versions(facts, reading):
            if arrival.version in reported:
                continue
            verdict, form = _verdict(reading.model, arrival, judge)
            if form is not None and arrival.frozen:
                reported.add(arrival.version)
            yield ReaderVerdict(reading, arrival, verdict, form)


def misread_elsewhere(facts: Facts, judge: FrozenJudge) -> Iterator[Problem]:
    """The same for a command to a service outside this project, known by its lock files only."""
    for sent in facts.publications:
        identity = sent.model.__identity__
        locks = facts.unretired(identity.name)
        if identity.kind == "event" or identity.owner in facts.services or not locks:
            continue
        same = [lock for lock in locks if lock.version == sent.writes]
        lock = (same or locks)[-1]
        for form in own_forms(sent, facts.frozen.of(identity.name)):
            verdict: Verdict = Unknown("the version to which it is downcast has no lock file")
            if form.schema is not None:
                verdict = judge(form.schema, lock.reader, lock.writer)
            if isinstance(verdict, Compatible):
                continue
            yield _problem(
                f"{identity.name} v{sent.writes}",
                f"Version {sent.writes}, which {sent.service} sends ({form.source}), "
                f"{_cannot(verdict)} by {identity.owner}, which is known by its lock file "
                f"{lock}{_reason(verdict)}.",
                f"In {sent.service}: send what {lock} accepts; or update the lock files of "
                f"{identity.owner}.",
                (identity.owner, sent.service),
                sent.place,
                verdict,
            )


def _verdict(
    model: type[Message], arrival: ArrivingVersion, judge: Judge
) -> tuple[Verdict, Form | None]:
    """Of the first form that the model cannot read; else of the first that is unknown; else that
    all are compatible."""
    unknown: list[tuple[Unknown, Form]] = []
    for form in distinct_forms(arrival.forms):
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
            return verdict, form
        if isinstance(verdict, Unknown):
            unknown.append((verdict, form))
    return unknown[0] if unknown else (Compatible(), None)


def _cast(model: type[Message], version: int) -> Cast | None:
    """The upcasters from this version, if the model has them and needs them."""
    if version == model.__identity__.version or version not in readable_versions(model):
        return None
    return lambda data: upcast(model, data, version)


def _unreadable(
    reading: Reading, arrival: ArrivingVersion, form: Form, verdict: Breaking | Unknown
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
    return "cannot be read" if isinstance(verdict, Breaking) else "is not proved to be readable"


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


def _fix(reading: Reading, arrival: ArrivingVersion, verdict: Breaking | Unknown) -> str:
    identity, model = reading.model.__identity__, reading.model.__name__
    version, reader = arrival.version, reading.service
    sender = listed(arrival.publishers) or identity.owner
    fields = [change.field for change in verdict.changes if change.field]
    if version > identity.version:
        mine = f"read version {version} with {model}, or make the missing fields optional"
        theirs = (
            f"write version {identity.version} until then, by service.publisher(…, version="
            f"{identity.version}) and a downcaster"
        )
    elif version < identity.version and version not in readable_versions(reading.model):
        mine = (
            f"write @{model}.upcaster(from_version={version}), or make the fields optional that "
            f"version {version} lacks"
        )
        theirs = (
            f"retire version {version} once `eventmesh schema inventory` finds no message of it"
        )
    elif version < identity.version:
        mine = f"correct the upcasters of {model} from version {version}"
        theirs = (
            f"retire version {version} once `eventmesh schema inventory` finds no message of it"
        )
    else:
        mine = f"let {model} accept what is sent{f' in {fields[0]}' if fields else ''}"
        theirs = f"send what {model} accepts, or give the change a version of its own"
    if not arrival.frozen:
        theirs = f"send only what {model} accepts"
    unsure = (
        ""
        if isinstance(verdict, Breaking)
        else " Or make sure that it is read, and waive this finding."
    )
    if sender == reader:
        return f"In {reader}: {mine}; or {theirs}.{unsure}"
    return f"In {reader}: {mine}. Or in {sender}: {theirs}.{unsure}"
