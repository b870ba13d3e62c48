"""Whether every event that is heard is published, and every command that is sent is handled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from eventmesh.contracts.fleet.facts import Facts, Publication, Reading
from eventmesh.contracts.fleet.wording import listed, once, reader_of, suggestion
from eventmesh.contracts.problem import Problem, Severity


def unpublished(facts: Facts) -> Iterator[Problem]:
    """EM051: an event is subscribed to that its owner does not publish. It is a warning where the
    owner is not among the services found and has lock files: somebody outside publishes it."""
    published = {each.model.__identity__.name for each in facts.publications}
    readings: dict[str, list[Reading]] = {}
    for reading in facts.readings:
        identity = reading.model.__identity__
        if identity.kind == "event" and identity.name not in published:
            readings.setdefault(identity.name, []).append(reading)
    for name, readers in sorted(readings.items()):
        yield _unpublished(facts, name, readers, published)


def _unpublished(
    facts: Facts, name: str, readers: Sequence[Reading], published: set[str]
) -> Problem:
    owner = name.partition(".")[0]
    said = f"It is subscribed to by {listed([reader_of(each) for each in readers])}"
    severity: Severity = "error"
    if owner in facts.services:
        summary = f"{said}, and {owner} does not publish it."
        fix = (
            f"Let {owner} publish it: service.publisher(…), or a handler that returns it; or "
            f"remove the subscription."
        )
    elif facts.unretired(name):
        severity = "warning"
        summary = (
            f"{said}, and its owner {owner} is not among the services found: it is taken to be "
            f"published elsewhere, as its lock files say."
        )
        fix = f"Check {owner} in the same project, or waive this."
    else:
        summary = f"{said}, and there is neither a service {owner} nor a lock file of it."
        fix = _nobody(owner)
    return Problem(
        "EM051",
        severity,
        name,
        summary,
        suggestion(name, published | set(facts.frozen.names())) + fix,
        parties=once(*(each.service for each in readers), owner),
        place=readers[0].place,
    )


def command_handlers(facts: Facts) -> Iterator[Problem]:
    """EM052, EM053 and EM070: a command that is sent has no handler, a command has several, or it
    has one and nobody sends it. The last is a warning: a program outside the mesh may send it."""
    handlers: dict[str, list[Reading]] = {}
    for reading in facts.readings:
        if reading.model.__identity__.kind == "command":
            handlers.setdefault(reading.model.__identity__.name, []).append(reading)
    senders: dict[str, list[Publication]] = {}
    for sent in facts.publications:
        if sent.model.__identity__.kind == "command":
            senders.setdefault(sent.model.__identity__.name, []).append(sent)
    for name in sorted(senders.keys() - handlers.keys()):
        yield _unhandled(facts, senders[name], handlers)
    for name, readings in sorted(handlers.items()):
        subscriptions = [each for reading in readings for each in reading.subscriptions]
        if len(subscriptions) > 1:
            yield Problem(
                "EM053",
                "error",
                name,
                f"It is handled by {listed(subscriptions)}: a command is handled once.",
                "Remove one of them, or publish an event, which several may handle.",
                parties=once(*(reading.service for reading in readings)),
                place=readings[-1].place,
            )
        elif name not in senders:
            yield _unsent(name, readings[0], senders.keys() - handlers.keys())


def _unsent(name: str, reading: Reading, unhandled: Iterable[str]) -> Problem:
    return Problem(
        "EM070",
        "warning",
        name,
        f"It is handled by {reader_of(reading)}, and no service declares that it sends it.",
        suggestion(name, unhandled) + f"Declare it where it is sent, by "
        f"service.publisher({reading.model.__name__}), which {reading.service} itself may do for "
        f"what its web application or its scripts send. Remove the handler if nobody sends the "
        f"command, or waive this if a program does that is not part of this project.",
        parties=(reading.service,),
        place=reading.place,
    )


def _unhandled(
    facts: Facts, senders: Sequence[Publication], handlers: Mapping[str, object]
) -> Problem:
    identity = senders[0].model.__identity__
    owner = identity.owner
    services = [each.service for each in senders]
    sent = f"It is sent by {listed(services)}"
    severity: Severity = "error"
    if owner in facts.services:
        summary = f"{sent}, and {owner} has no handler for it."
        fix = f"Write a handler in {owner}, or stop sending it."
    elif facts.unretired(identity.name):
        severity = "warning"
        summary = (
            f"{sent}, and its owner {owner} is not among the services found: it is taken to be "
            f"handled elsewhere, as its lock files say."
        )
        fix = f"Check {owner} in the same project, or waive this."
    else:
        summary = f"{sent}, and there is neither a service {owner} nor a lock file of it."
        fix = _nobody(owner)
    return Problem(
        "EM052",
        severity,
        identity.name,
        summary,
        suggestion(identity.name, {*handlers, *facts.frozen.names()}) + fix,
        parties=once(*services, owner),
        place=senders[0].place,
    )


def _nobody(owner: str) -> str:
    return (
        f"Correct the name; or, if {owner} lives in another project, add its lock files below "
        f"schemas/{owner}/."
    )
