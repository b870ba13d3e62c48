"""All checks, in the order in which a person would make them: is it configured, does it answer, is
it what the code needs, is it safe, does anything wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from eventmesh.operations.doctor import rules
from eventmesh.operations.doctor.measuring import Measured, MeasuredDatabase
from eventmesh.operations.doctor.verdict import (
    Severity,
    Verdict,
    away,
    failure,
    fine,
    skipped,
    warning,
)
from eventmesh.transports.facts import BrokerFacts, KnownSubscription

BROKER = "broker"


def examine(measured: Measured) -> list[Verdict]:
    """The verdicts of all checks."""
    return [
        *_settings(measured),
        *_broker(measured),
        *(verdict for each in measured.databases for verdict in _database(measured, each)),
        *_schemas(measured),
        *_subscriptions(measured),
        *_sagas(measured),
    ]


def _settings(measured: Measured) -> Iterator[Verdict]:
    for unknown in measured.unknown_variables:
        yield warning("settings", unknown.name, str(unknown), "Correct its name, or remove it.")
    if not measured.unknown_variables:
        yield fine("settings", "environment", "every EVENTMESH_ variable is known")
    for service in measured.services:
        if not service.needs_database:
            continue
        problem = measured.window.get(service.name)
        yield Verdict(
            "inbox window",
            service.name,
            Severity.OK if problem is None else Severity.FAILURE,
            f"{measured.settings.inbox_window:,.0f} s, longer than any retry"
            if problem is None
            else problem,
        )


def _broker(measured: Measured) -> Iterator[Verdict]:
    yield rules.reachable(BROKER, measured.broker_error)
    facts = measured.broker
    if facts is None:
        return
    unknown = facts.unknown
    kind = _kind(measured.settings.broker_url)
    if facts.version is not None or "version" in unknown:
        yield rules.version(BROKER, kind, facts.version)
    yield rules.clock(BROKER, facts.clock_ahead, unknown.get("clock_ahead", ""))
    if facts.forbidden is not None or "forbidden" in unknown:
        yield rules.permissions(BROKER, facts.forbidden, unknown.get("forbidden", ""))
    if facts.redis is not None:
        yield from rules.redis_storage(facts.redis)
    if facts.rabbitmq is not None:
        yield from rules.rabbitmq_cluster(facts.rabbitmq)
        wrong = [each for queue in facts.rabbitmq.queues for each in rules.rabbitmq_queue(queue)]
        yield from wrong or [
            fine(
                "queue type",
                BROKER,
                f"{len(facts.rabbitmq.queues)} quorum queue(s), and no policy that drops messages",
            )
        ]
    if facts.file is not None:
        yield from rules.broker_file(facts.file)
    yield from _worst_or_sum("streams", map(rules.stream, facts.streams or ()))
    for part in ("redis", "rabbitmq", "streams"):
        if part in unknown:
            yield skipped(_SKIPPED[part], BROKER, unknown[part])
    yield from _undeclared(measured, facts)
    yield from _worst_or_sum(
        "unrouted messages",
        (
            rules.unrouted(message, number, measured.settings.unrouted_max)
            for message, number in sorted((measured.unrouted or {}).items())
        ),
    )


_SKIPPED = {
    "redis": "persistence and eviction",
    "rabbitmq": "queue types, policies and alarms",
    "streams": "streams",
}


def _undeclared(measured: Measured, facts: BrokerFacts) -> Iterator[Verdict]:
    """Subscriptions that the broker has and no service declares."""
    check = "undeclared subscriptions"
    if facts.subscriptions is None:
        if why := facts.unknown.get("subscriptions"):
            yield skipped(check, BROKER, why)
        return
    declared = {name for service in measured.services for name in service.handlers}
    stray = [each for each in facts.subscriptions if each.name not in declared]
    for each in stray:
        fix = _how_to_delete(_kind(measured.settings.broker_url), measured, each.name)
        yield rules.undeclared(each.name, each.waiting, fix)
    surplus = list(_surplus(measured, facts.subscriptions))
    yield from surplus
    if not (stray or surplus):
        yield fine(check, BROKER, "none")


def _surplus(measured: Measured, known: Iterable[KnownSubscription]) -> Iterator[Verdict]:
    """Messages that the broker gives to a subscription whose code takes them no more."""
    taken = {
        name: set(handler.subscription.messages)
        for service in measured.services
        for name, handler in service.handlers.items()
    }
    prefix = measured.settings.broker_prefix
    for each in known:
        for message, waiting in sorted(each.by_message.items()):
            if message in taken.get(each.name, {message}):
                continue
            if _kind(measured.settings.broker_url) == "redis":
                stream = f"{prefix}:stream:{message}"
                fix = f"destroy the group {each.name} of the stream {stream} (XGROUP DESTROY)"
            else:
                fix = "delete its row from the table binding of the file"
            yield rules.surplus(each.name, message, waiting, fix)


def _how_to_delete(kind: str, measured: Measured, name: str) -> str:
    prefix = measured.settings.broker_prefix
    other = (
        "If it belongs to a service of another project, give that one a prefix of its own by "
        "EVENTMESH_BROKER_PREFIX, or ignore this. If nobody needs it any more, "
    )
    match kind:
        case "rabbitmq":
            return f"{other}delete the queues {prefix}.queue.{name} and {prefix}.dead.{name}."
        case "redis":
            return (
                f"{other}destroy the group {name} of its streams (XGROUP DESTROY), and delete the "
                f"keys {prefix}:retry:{name}, {prefix}:delayed:{name} and {prefix}:dead:{name}."
            )
        case _:
            return f"{other}delete its rows from the tables binding and queue of the file."


def _database(measured: Measured, each: MeasuredDatabase) -> Iterator[Verdict]:
    service = each.place.services[0]
    name = ", ".join(each.place.services)
    subject = f"database of {name}"
    yield rules.reachable(subject, each.error)
    if each.facts is None:
        return
    yield rules.version(subject, each.facts.kind, each.facts.version or None)
    yield rules.migration(service, each.facts)
    for drift in each.drift:
        yield failure("tables", subject, drift)
    if each.facts.migration != each.facts.head:
        return
    yield rules.permissions(subject, each.facts.forbidden)
    [status] = [one for one in measured.status.databases if one.services == each.place.services]
    if status.outbox is None:
        if status.problem is not None:
            yield away("outbox", f"outbox of {name}", status.problem)
        return
    yield rules.clock(subject, status.clock_ahead)
    broker = None if measured.broker is None else measured.broker.clock_ahead
    if broker is not None and status.clock_ahead is not None:
        ahead = status.clock_ahead - broker
        yield rules.clock(subject, ahead, than="the broker's")
    yield rules.outbox_age(service, status.outbox, measured.settings.outbox_max_age)
    yield rules.parked_messages(service, status.outbox)
    yield rules.leases(service, status.outbox, each.facts)


def _schemas(measured: Measured) -> Iterator[Verdict]:
    for service in measured.services:
        problem = measured.drift.get(service.name)
        yield Verdict(
            "schemas",
            service.name,
            Severity.OK if problem is None else Severity.FAILURE,
            "the code agrees with what is frozen" if problem is None else problem,
        )


def _subscriptions(measured: Measured) -> Iterator[Verdict]:
    relays = {
        service: status.outbox.relays
        for status in measured.status.databases
        if status.outbox is not None
        for service in status.services
    }
    handlers = {name: each for s in measured.services for name, each in s.handlers.items()}
    for status in measured.status.subscriptions:
        if status.problem is not None:
            if measured.broker is not None:  # else the broker's own verdict says it
                yield away("reachable", status.name, status.problem)
            continue
        if not handlers[status.name].elsewhere or status.consumers is not None:
            yield rules.consumers(status, relays.get(status.service))
        yield from filter(None, (rules.waiting(status), rules.dead_letters(status)))


def _sagas(measured: Measured) -> Iterator[Verdict]:
    yield from filter(None, map(rules.sagas, measured.status.sagas))


def _worst_or_sum(check: str, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Those that are not fine; or one that sums up that all are."""
    found = list(verdicts)
    wrong = [each for each in found if each.severity is not Severity.OK]
    if wrong or not found:
        return wrong
    return [fine(check, BROKER, f"{len(found)} within bounds")]


def _kind(broker_url: str) -> str:
    scheme = broker_url.partition(":")[0].partition("+")[0]
    return {"amqp": "rabbitmq", "amqps": "rabbitmq", "rediss": "redis"}.get(scheme, scheme)
