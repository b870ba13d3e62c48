"""In which forms a message may still arrive.

At a subscriber of an event: every frozen version that is not retired, up to the one that the owner
writes, and what the owner's model writes today. At the handler of a command: every frozen version
that is not retired, up to the handler's, and what each sender's model writes today.
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
    """One form in which a version may arrive. Without a schema nothing is known of it."""

    schema: dict[str, Any] | None
    source: str
    samples: Sequence[Any] = ()
    model: type[Message] | None = None
    """What writes it today, where that is known."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A version as these services may send it, in one form or another."""

    version: int
    publishers: tuple[str, ...]
    forms: tuple[Form, ...]
    frozen: bool = True
    """Whether it is what everybody may send, and not what one sender's model happens to be."""


def arrivals(facts: Facts, reading: Reading) -> Iterator[Arrival]:
    """All that may arrive at this reader, by version."""
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
) -> Iterator[Arrival]:
    frozen = {
        version: _frozen_forms(revisions)
        for version, revisions in locks.items()
        if version <= newest
    }
    own = {each: own_forms(each, locks) for each in sent}
    usual = {  # who sends what is frozen, which is looked at once for all
        each: _contracts(forms) <= _contracts(frozen.get(each.writes, ()))
        for each, forms in own.items()
    }
    for version, forms in frozen.items():
        senders = [each for each in sent if each.writes == version]
        same = chain.from_iterable(own[each] for each in senders if usual[each])
        if forms:
            yield Arrival(version, once(*(each.service for each in senders)), (*forms, *same))
    for each, forms in own.items():
        if not usual[each]:
            yield Arrival(each.writes, (each.service,), forms, frozen=False)


def _events(
    owner: str, locks: Mapping[int, Sequence[Lock]], sent: Sequence[Publication]
) -> Iterator[Arrival]:
    newest = max((each.writes for each in sent), default=max(locks, default=0))
    for version in sorted({*locks, *(each.writes for each in sent)}):
        today = (own_forms(each, locks) for each in sent if each.writes == version)
        forms = (*_frozen_forms(locks.get(version, ())), *chain.from_iterable(today))
        if forms and version <= newest:
            yield Arrival(version, (owner,), forms)


def _frozen_forms(revisions: Sequence[Lock], *, retired: bool = False) -> tuple[Form, ...]:
    return tuple(
        Form(lock.writer, "/".join(lock.path.parts[-3:]), lock.samples)
        for lock in revisions
        if (lock.status == "retired") is retired
    )


def own_forms(sent: Publication, locks: Mapping[int, Sequence[Lock]]) -> tuple[Form, ...]:
    """What the publisher writes today: its model's form, or one that its downcasters end in."""
    if sent.writes == sent.model.__identity__.version:
        writer, _ = schemas_of(sent.model)
        name = f"{sent.model.__name__} of {sent.service}"
        return (Form(writer, name, model=sent.model),)
    revisions = locks.get(sent.writes, ())
    known = _frozen_forms(revisions) or _frozen_forms(revisions, retired=True)
    return known or (Form(None, f"the downcasters of {sent.model.__name__}"),)


def different(forms: Iterable[Form]) -> Iterable[Form]:
    """The forms without those that say the same; where one is a model's, that one is kept, with all
    samples."""
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
    # Its checks too: a document that they keep from being written is no document that arrives.
    return "" if form.schema is None else digest(form.schema, defaults=False, checks=True)
