"""Which versions of a message may still arrive at a subscriber, and in which forms.

| at | frozen versions that are not retired | and what is written today by |
|---|---|---|
| a subscriber of an event | up to the one that the owner publishes | the owner's model |
| the handler of a command | up to the handler's own version | the model of each sender |

A version can have several forms: each frozen revision of it, and the current model of its writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from eventmesh.contracts.canonical import digest
from eventmesh.contracts.fleet.facts import Facts, Publication, Reading
from eventmesh.contracts.fleet.wording import once
from eventmesh.contracts.locks.drift import schemas_of
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.message import Message


@dataclass(frozen=True, slots=True)
class Form:
    """One schema in which a version may arrive; None if it is not known."""

    schema: dict[str, Any] | None
    source: str
    samples: Sequence[Any] = ()
    model: type[Message] | None = None
    """The model that writes it today, if it is known."""


@dataclass(frozen=True, slots=True)
class ArrivingVersion:
    """A version that these services may send, in one of several forms."""

    version: int
    publishers: tuple[str, ...]
    forms: tuple[Form, ...]
    frozen: bool = True
    """Whether it is frozen, and not merely what the model of one sender happens to be."""


def arriving_versions(facts: Facts, reading: Reading) -> Iterator[ArrivingVersion]:
    """Everything that may arrive at this reader, by version."""
    identity = reading.model.__identity__
    locks = facts.frozen.of(identity.name)
    sent = [each for each in facts.publications if each.model.__identity__.name == identity.name]
    if identity.kind == "command":
        yield from _commands(identity.version, locks, sent)
    else:
        owner = [each for each in sent if each.service == identity.owner]
        if owner or identity.owner not in facts.services:
            yield from _events(identity.owner, locks, owner)


def _commands(
    newest: int, locks: Mapping[int, Sequence[Lock]], sent: Sequence[Publication]
) -> Iterator[ArrivingVersion]:
    frozen = {
        version: _frozen_forms(revisions)
        for version, revisions in locks.items()
        if version <= newest
    }
    own = {each: own_forms(each, locks) for each in sent}
    follows_lock = {  # what these send is checked once for all of them, as frozen
        each: _contracts(forms) <= _contracts(frozen.get(each.writes, ()))
        for each, forms in own.items()
    }
    for version, forms in frozen.items():
        senders = [each for each in sent if each.writes == version]
        same = chain.from_iterable(own[each] for each in senders if follows_lock[each])
        if forms:
            yield ArrivingVersion(
                version, once(*(each.service for each in senders)), (*forms, *same)
            )
    for each, forms in own.items():
        if not follows_lock[each]:
            yield ArrivingVersion(each.writes, (each.service,), forms, frozen=False)


def _events(
    owner: str, locks: Mapping[int, Sequence[Lock]], sent: Sequence[Publication]
) -> Iterator[ArrivingVersion]:
    newest = max((each.writes for each in sent), default=max(locks, default=0))
    for version in sorted({*locks, *(each.writes for each in sent)}):
        today = (own_forms(each, locks) for each in sent if each.writes == version)
        forms = (*_frozen_forms(locks.get(version, ())), *chain.from_iterable(today))
        if forms and version <= newest:
            yield ArrivingVersion(version, (owner,), forms)


def _frozen_forms(revisions: Sequence[Lock], *, retired: bool = False) -> tuple[Form, ...]:
    return tuple(
        Form(lock.writer, "/".join(lock.path.parts[-3:]), lock.samples)
        for lock in revisions
        if (lock.status == "retired") is retired
    )


def own_forms(sent: Publication, locks: Mapping[int, Sequence[Lock]]) -> tuple[Form, ...]:
    """The forms that the publisher writes today: its model's, or that of an older version to which
    it downcasts."""
    if sent.writes == sent.model.__identity__.version:
        writer, _ = schemas_of(sent.model)
        name = f"{sent.model.__name__} of {sent.service}"
        return (Form(writer, name, model=sent.model),)
    revisions = locks.get(sent.writes, ())
    known = _frozen_forms(revisions) or _frozen_forms(revisions, retired=True)
    return known or (Form(None, f"downcasters of {sent.model.__name__}"),)


def distinct_forms(forms: Iterable[Form]) -> Iterable[Form]:
    """The forms without duplicates; of equal forms one with a model is kept, and all samples."""
    kept: dict[str, Form] = {}
    for form in forms:
        known = kept.get(_contract(form))
        if known is not None:
            form = replace(
                known, samples=(*known.samples, *form.samples), model=form.model or known.model
            )
        kept[_contract(form)] = form
    return kept.values()


def _contracts(forms: Iterable[Form]) -> set[str]:
    return {_contract(form) for form in forms}


def _contract(form: Form) -> str:
    # Validators count as well: a document that they reject is never written.
    return "" if form.schema is None else digest(form.schema, defaults=False, checks=True)
