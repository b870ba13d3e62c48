"""Every event that is subscribed to is published, and every command has exactly one handler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from eventmesh.contracts.fleet.facts import Facts, Publication, Reading
from eventmesh.contracts.fleet.wording import listed, once, reader_of, suggestion
from eventmesh.contracts.problem import Problem, Severity


def unpublished(facts: Facts) -> Iterator[Problem]:
    """EM051: a service subscribes to an event that its owner does not publish.

    It is a warning if the owner is not in this project but its lock files are: then it publishes
    the event elsewhere.
    """
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
    beginning = f"{listed([reader_of(each) for each in readers])} subscribes to it"
    severity: Severity = "error"
    if owner in facts.services:
        summary = f"{beginning}, but {owner} does not publish it."
        fix = (
            f"Publish it in {owner}, by service.publisher(…) or a handler that returns it; or "
            f"remove the subscription."
        )
    elif facts.unretired(name):
        severity = "warning"
        summary = (
            f"{beginning}, but its owner {owner} is not a service of this project. Since there are "
            f"lock files, we assume that it is published elsewhere."
        )
        fix = f"Check {owner} in the same project, or waive this finding."
    else:
        summary = f"{beginning}, but there is neither a service {owner} nor a lock file."
        fix = _fix_for_unknown_owner(owner)
    models = [each.model for each in facts.publications] + [each.model for each in facts.readings]
    commands = {each.__identity__.name for each in models if each.__identity__.kind == "command"}
    return Problem(
        "EM051",
        severity,
        name,
        summary,
        suggestion(name, (published | set(facts.frozen.names())) - commands) + fix,
        parties=once(*(each.service for each in readers), owner),
        place=readers[0].place,
    )


def command_handlers(facts: Facts) -> Iterator[Problem]:
    """EM052, EM053 and EM070: a command is sent and has no handler, has several, or has one and
    nobody sends it.

    The last is a warning, since a program outside this project may send it.
    """
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
                f"It is handled by {listed(subscriptions)}, but a command must have one handler.",
                "Remove one of them, or publish an event, which may have several subscribers.",
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
        f"It is handled by {reader_of(reading)}, but no service declares that it sends it.",
        suggestion(name, unhandled) + f"Declare it in the service that sends it, by "
        f"service.publisher({reading.model.__name__}); {reading.service} itself may do so for its "
        f"web application or scripts. If nobody sends it, remove the handler. If a program outside "
        f"this project sends it, waive this finding.",
        parties=(reading.service,),
        place=reading.place,
    )


def _unhandled(
    facts: Facts, senders: Sequence[Publication], handlers: Mapping[str, object]
) -> Problem:
    identity = senders[0].model.__identity__
    owner = identity.owner
    services = [each.service for each in senders]
    beginning = f"{listed(services)} sends it"
    severity: Severity = "error"
    if owner in facts.services:
        summary = f"{beginning}, but {owner} has no handler for it."
        fix = f"Write a handler in {owner}, or stop sending it."
    elif facts.unretired(identity.name):
        severity = "warning"
        summary = (
            f"{beginning}, but its owner {owner} is not a service of this project. Since there are "
            f"lock files, we assume that it is handled elsewhere."
        )
        fix = f"Check {owner} in the same project, or waive this finding."
    else:
        summary = f"{beginning}, but there is neither a service {owner} nor a lock file."
        fix = _fix_for_unknown_owner(owner)
    return Problem(
        "EM052",
        severity,
        identity.name,
        summary,
        suggestion(identity.name, {*handlers, *facts.frozen.names()}) + fix,
        parties=once(*services, owner),
        place=senders[0].place,
    )


def _fix_for_unknown_owner(owner: str) -> str:
    return (
        f"Correct the name; or, if {owner} is in another project, copy its lock files to "
        f"schemas/{owner}/."
    )
