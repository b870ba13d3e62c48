"""Every message has one owner, and every service declares it with the same kind and key."""

from __future__ import annotations

from collections.abc import Iterator

from eventmesh.contracts.fleet.facts import Facts, Publication, Reading
from eventmesh.contracts.fleet.wording import once
from eventmesh.contracts.message import Identity, Message
from eventmesh.contracts.problem import Problem

_KINDS = {"event": "an event", "command": "a command"}


def two_owners(facts: Facts) -> Iterator[Problem]:
    """EM054: two services have the same name, or an event is published by another service than its
    owner."""
    for service in sorted({name for name in facts.services if facts.services.count(name) > 1}):
        yield Problem(
            "EM054",
            "error",
            f"service {service}",
            f"{facts.services.count(service)} services have this name, so they own the same "
            f"messages.",
            "Rename one of them and its messages.",
            parties=(service,),
        )
    for sent in facts.publications:
        identity = sent.model.__identity__
        if identity.kind == "event" and sent.service != identity.owner:
            yield Problem(
                "EM054",
                "error",
                identity.name,
                f"It is published by {sent.service}, but its owner is {identity.owner}.",
                f"Publish an event named {sent.service}.…, or send {identity.owner} a command.",
                parties=once(sent.service, identity.owner),
                place=sent.place,
            )


def other_identities(facts: Facts) -> Iterator[Problem]:
    """EM058: a service declares a message of another one with a different kind or key.

    With a different key, messages do not arrive in the order on which the service relies.
    """
    owned = {
        each.model.__identity__.name: each.model.__identity__
        for each in facts.declared
        if each.service == each.model.__identity__.owner
    }
    reported = set()
    for each in facts.declared:
        mine = each.model.__identity__
        if each.service == mine.owner or (each.service, mine.name) in reported:
            continue
        difference = _kind_difference(facts, mine, owned.get(mine.name)) or _key_difference(
            facts, each, owned.get(mine.name)
        )
        if difference:
            reported.add((each.service, mine.name))
            summary, fix = difference
            yield Problem(
                "EM058",
                "error",
                mine.name,
                f"For {each.service} {summary}",
                fix,
                parties=once(each.service, mine.owner),
                place=each.place,
            )


def _kind_difference(
    facts: Facts, mine: Identity, owners: Identity | None
) -> tuple[str, str] | None:
    kinds = {owners.kind} if owners else {lock.kind for lock in facts.unretired(mine.name)}
    if not kinds or mine.kind in kinds:
        return None
    [kind, *_] = sorted(kinds)
    return (
        f"it is {_KINDS[mine.kind]}, but for its owner {mine.owner} it is {_KINDS[kind]}.",
        f"Derive the model from {kind.capitalize()}, or correct its name.",
    )


def _key_difference(
    facts: Facts, each: Publication | Reading, owners: Identity | None
) -> tuple[str, str] | None:
    """A subscriber may leave the key out, since the envelope has it; a sender may not."""
    mine = each.model.__identity__
    revisions = facts.frozen.of(mine.name).get(mine.version, ())
    if revisions:
        key = revisions[-1].key
    elif owners is not None and owners.version == mine.version:
        key = owners.key
    else:
        return None
    reads = isinstance(each, Reading)
    if key == mine.key or key in _names_of_key(each.model):
        return None
    if mine.key is None if reads else key is None:  # nobody relies on an order
        return None
    declared = f"the key {mine.key!r}" if mine.key else "no key"
    expected = f"the key {key!r}" if key else "no key"
    effect = (
        "messages do not arrive in the order of its key"
        if reads
        else f"its messages do not arrive in the order that {mine.owner} expects"
    )
    return (
        f"version {mine.version} has {declared}, but for its owner {mine.owner} {expected}: "
        f"{effect}.",
        f"Write key={key!r}." if key else "Remove key=….",
    )


def _names_of_key(model: type[Message]) -> set[str]:
    """The names of the key field in data that the model reads or writes."""
    key = model.__identity__.key
    if key is None:
        return set()
    info = model.model_fields[key]
    names = {key, info.alias, info.serialization_alias, info.validation_alias}
    return {name for name in names if isinstance(name, str)}
