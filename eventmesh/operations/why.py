"""What happened to a message, and what came of it: one tree of causes over all services.

The tree is put together from what each place knows, so it needs no tracing and no central store:

    journal of orders      orders.placed m1              handled by orders.ship at 12:00:01
    journal of billing     orders.placed m1              handled by billing.charge, attempt 2
    outbox of billing      billing.charged m2, from m1   parked
    broker                 orders.packed m3, from m1     waits for audit.note

    m1 orders.placed       handled by orders.ship and by billing.charge
      m2 billing.charged   parked in the outbox of billing
      m3 orders.packed     waits for audit.note

A subscription that takes a message, and of which no place knows anything about it, is part of the
answer, with the reason if there is one: its database was not reached, its handler leaves no record,
the broker does not show what it holds. Without a reason, the message may be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from eventmesh.operations.evidence import Evidence, InDatabase, Question, SagaHistory, gather
from eventmesh.operations.reach import Reach
from eventmesh.persistence.journal import MOST_SEARCHED, Handled
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.transports.census import Hidden
from eventmesh.wire.envelope import Envelope

MOST_MESSAGES = 5_000
"""How many messages an answer has."""

MOST_NAMED = 4
"""How many subscriptions are named that were not looked into for one reason."""

What = Literal[
    "handled", "begun", "dead", "outbox", "ready", "delayed", "in_flight", "unrouted", "unknown"
]
"""What is known of a message in a place. `begun`: it is being handled, again and again. `unknown`:
nothing, for the reason given."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A message in one place: a subscription, or the outbox of services. `state` is the row's state
    in an outbox, `took` seconds, `detail` a reason for people."""

    what: What
    place: str
    at: datetime | None = None
    attempt: int | None = None
    took: float | None = None
    state: str = ""
    detail: str = ""
    letter_id: str = ""


@dataclass(frozen=True, slots=True)
class TracedMessage:
    """A message, and where it was seen. `name` is None where only its effects are known. `depth`
    counts its known causes."""

    id: str
    name: str | None
    key: str | None
    correlation_id: str
    causation_id: str | None
    created_at: datetime | None
    sightings: tuple[Sighting, ...] = ()
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Trace:
    """The answer. `messages` are in the order of a tree: each is followed by its effects, which
    have a greater depth. `hidden` are places that could not be looked into, and messages that would
    have left no trace, in words. `problems` say who did not answer."""

    asked: str
    messages: tuple[TracedMessage, ...]
    sagas: tuple[SagaHistory, ...]
    hidden: tuple[str, ...]
    problems: tuple[str, ...]
    is_cut: bool = False
    """Whether there are more messages than an answer has."""
    publishers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The services that declare to publish a message, by its name."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody knows what was asked for."""
        return not self.messages and not self.sagas


@dataclass(slots=True)
class _Known:
    """What is known of a message so far."""

    id: str
    name: str | None = None
    key: str | None = None
    correlation_id: str = ""
    causation_id: str | None = None
    created_at: datetime | None = None
    sightings: list[Sighting] = field(default_factory=list)


async def trace_id(reach: Reach, wanted: str) -> Trace:
    """What is known of the message, the saga or the chain of causes with this id."""
    # A saga is named with its id in the attribute `sagaid`: orders.place/0190…
    return await _trace(reach, wanted, Question(frozenset([wanted, wanted.rpartition("/")[2]])))


async def trace_key(reach: Reach, key: str) -> Trace:
    """What is known of the messages and sagas with this key, and of what came from them."""
    return await _trace(reach, key, Question(key=key))


async def _trace(reach: Reach, asked: str, question: Question) -> Trace:
    evidence = await gather(reach, question)
    unsearched = filter(None, [_describe_unsearched(each) for each in evidence.databases])
    chains = evidence.correlation_ids
    if chains and not (question.key is None and chains <= question.ids):
        # The message was somewhere in the middle, or there are several chains.
        evidence = await gather(reach, Question(chains))
    inbox_window = reach.settings.inbox_window
    found = trace(asked, evidence, reach.services, reach.clock.now(), inbox_window)
    return replace(found, hidden=(*found.hidden, *unsearched))


def trace(
    asked: str,
    evidence: Evidence,
    services: Sequence[Service],
    now: datetime,
    inbox_window: float,
) -> Trace:
    """The tree of what was found. `inbox_window` is for how many seconds inboxes remember."""
    known: dict[str, _Known] = {}
    for database in evidence.databases:
        for row in database.handled:
            _add_handled(_of(known, row.message_id), row)
        for waiting in database.waiting:
            owner = ", ".join(database.services)
            sighting = Sighting(
                "outbox",
                owner,
                waiting.due_at,
                waiting.attempts,
                None,
                waiting.state,
                waiting.error,
            )
            _add(known, waiting.envelope, sighting)
        for begun in database.begun:
            detail = f"its handler was started {begun.times} times and has not ended"
            _of(known, begun.message_id).sightings.append(
                Sighting("begun", begun.subscription, begun.at, detail=detail)
            )
    for located in evidence.broker.located:
        _add(known, located.envelope, Sighting(located.state, located.subscription))
    for letter in evidence.broker.dead:
        sighting = Sighting(
            "dead",
            letter.subscription,
            letter.died_at,
            letter.attempts,
            detail=letter.reason,
            letter_id=letter.id,
        )
        _add(known, letter.envelope, sighting)
    silent = {
        name: database.problem
        for database in evidence.databases
        if database.problem
        for name in database.services
    }
    doubt = _Doubt(services, silent, evidence, now - timedelta(seconds=inbox_window))
    for each in known.values():
        each.sightings += doubt.about(each)
    ordered = _in_order_of_a_tree(known)
    sagas = [each for database in evidence.databases for each in database.sagas]
    return Trace(
        asked,
        tuple(ordered[:MOST_MESSAGES]),
        tuple(sorted(sagas, key=lambda each: (str(each.row.started_at), each.row.name))),
        (
            *describe_hidden(evidence.broker.hidden),
            *_unrecorded(services, known.values()),
        ),
        evidence.problems,
        len(ordered) > MOST_MESSAGES,
        _publishers(services),
    )


def _publishers(services: Iterable[Service]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for service in services:
        for name in service.registry.published_names():
            found.setdefault(name, []).append(service.name)
    return found


def _unrecorded(services: Sequence[Service], known: Collection[_Known]) -> Iterator[str]:
    """What may have come of the messages that were handled, and would have left no trace: messages
    that only handlers without a transaction take. What a saga published is told by its log."""
    handlers = {name: (each, of) for of in services for name, each in of.handlers.items()}
    handled = {at.place for each in known for at in each.sightings if at.what == "handled"}
    may_follow = set[str]()
    for handler, service in (handlers[name] for name in handled if name in handlers):
        if handler.function is None:  # it is a saga's
            continue
        returned = {model.__identity__.name for model in handler.returns}
        may_follow |= returned or service.registry.published_names()
    for name in sorted(may_follow - {each.name for each in known}):
        takers = [(at, it) for at, (it, _) in handlers.items() if name in it.subscription.messages]
        if takers and not any(handler.transactional for _, handler in takers):
            names = ", ".join(at for at, _ in takers)
            yield (
                f"perhaps {name} was published, too: only {names} takes it, without a transaction, "
                f"so nothing records what was handled"
            )


def _describe_unsearched(database: InDatabase) -> str | None:
    """What a search for a key did not look at; None if it looked at all."""
    if database.searched_since is None:
        return None
    return (
        f"messages that {', '.join(database.services)} handled until "
        f"{database.searched_since:%Y-%m-%d %H:%M:%S} UTC were not searched for the key, because "
        f"a search reads the newest {MOST_SEARCHED:,} only: ask with the id of a message"
    )


def describe_hidden(places: Iterable[Hidden]) -> list[str]:
    """The places that were not looked into, in words; one sentence for all that hold an unknown
    number for the same reason."""
    subscriptions: dict[Hidden, list[str]] = {}
    for each in places:
        alike = replace(each, subscription="") if each.number is None else each
        subscriptions.setdefault(alike, []).append(each.subscription)
    return [_not_looked_into(each, list(dict.fromkeys(of))) for each, of in subscriptions.items()]


def _not_looked_into(hidden: Hidden, subscriptions: Sequence[str]) -> str:
    number = "an unknown number of" if hidden.number is None else f"{hidden.number:,}"
    named = ", ".join(filter(None, subscriptions[:MOST_NAMED]))
    of = f" of {named}" if named else ""
    more = len(subscriptions) - MOST_NAMED
    if more > 0:
        of += f" and {more:,} more"
    return f"{number} {hidden.state.replace('_', ' ')} messages{of} not looked into: {hidden.why}"


class _Doubt:
    """Why nothing is known about a message of subscriptions that take it."""

    def __init__(
        self,
        services: Sequence[Service],
        silent: Mapping[str, str | None],
        evidence: Evidence,
        remembered_since: datetime,
    ) -> None:
        self._silent = silent
        self._broker = evidence.broker
        self._remembered_since = remembered_since
        self._takers: dict[str, list[tuple[Service, Handler]]] = {}
        for service in services:
            for handler in service.handlers.values():
                for name in handler.subscription.messages:
                    self._takers.setdefault(name, []).append((service, handler))

    def about(self, message: _Known) -> list[Sighting]:
        """A sighting for each of the subscriptions in which there should have been one."""
        if message.name is None or all(
            each.what in ("outbox", "unrouted") for each in message.sightings
        ):
            return []
        seen = {each.place for each in message.sightings}
        return [
            Sighting("unknown", handler.subscription.name, detail=self._why(message, *taker))
            for taker in self._takers.get(message.name, ())
            if (handler := taker[1]).subscription.name not in seen
        ]

    def _why(self, message: _Known, service: Service, handler: Handler) -> str:
        hidden = {each.subscription for each in self._broker.hidden}
        if not handler.transactional:
            return "its handler takes no transaction, so nothing records what it has handled"
        if service.name in self._silent:
            return f"the database of {service.name} did not answer"
        if self._broker.problem:
            return "not handled; whether it waits is unknown, as the broker did not answer"
        if message.created_at is not None and message.created_at < self._remembered_since:
            return "it is older than the inbox remembers (EVENTMESH_INBOX_WINDOW)"
        if handler.subscription.name in hidden or "" in hidden:
            return "not handled; it may be among the messages that were not looked into"
        return (
            "no trace: it was on its way at this very moment, was discarded, was published before "
            "this subscription was declared, or is lost; `eventmesh audit` counts"
        )


def _of(known: dict[str, _Known], message_id: str) -> _Known:
    return known.setdefault(message_id, _Known(message_id, created_at=created_at(message_id)))


def _add(known: dict[str, _Known], envelope: Envelope, sighting: Sighting) -> None:
    each = _of(known, envelope.unique_id)
    each.name = envelope.name or each.name
    each.key = envelope.key or each.key
    each.correlation_id = envelope.correlation_id
    each.causation_id = envelope.attributes.get("causationid") or each.causation_id
    each.created_at = _aware(envelope.time) or each.created_at
    if sighting not in each.sightings:
        each.sightings.append(sighting)


def _add_handled(each: _Known, row: Handled) -> None:
    each.name = each.name or row.name
    each.key = each.key or row.key
    each.correlation_id = each.correlation_id or row.correlation_id or ""
    each.causation_id = each.causation_id or row.causation_id
    detail = "" if row.name is not None else "written without a journal"
    each.sightings.append(
        Sighting("handled", row.subscription, row.at, row.attempt, row.took, detail=detail)
    )


def created_at(message_id: str) -> datetime | None:
    """When an id of ours was made, to the millisecond: a UUIDv7 begins with the time."""
    if len(message_id) != len("01900000-0000-7000-8000-000000000000") or message_id[14] != "7":
        return None
    try:
        return datetime.fromtimestamp(int(message_id[:8] + message_id[9:13], 16) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _aware(moment: datetime | None) -> datetime | None:
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def _in_order_of_a_tree(known: Mapping[str, _Known]) -> list[TracedMessage]:
    """Each message followed by its effects, oldest first. A cause of which nothing else is known is
    a message without a name. Ids come from publishers, so they may also form a ring: then the
    oldest of it comes first."""
    messages = dict(known)
    aliases = _aliases(known)
    effects: dict[str, list[_Known]] = {}
    for each in known.values():
        if not each.causation_id:
            continue
        cause = aliases.get(each.causation_id, each.causation_id)
        if cause not in messages:
            messages[cause] = _Known(
                cause, correlation_id=each.correlation_id, created_at=created_at(cause)
            )
        effects.setdefault(cause, []).append(each)
    caused = {each.id for those in effects.values() for each in those}
    oldest_first = sorted(messages.values(), key=_age)
    ordered: dict[str, TracedMessage] = {}
    for root in [each for each in oldest_first if each.id not in caused] + oldest_first:
        stack = [(root, 0)]
        while stack:
            each, depth = stack.pop()
            if each.id in ordered:
                continue
            ordered[each.id] = _traced(each, depth)
            following = sorted(effects.get(each.id, ()), key=_age, reverse=True)
            stack += [(effect, depth + 1) for effect in following]
    return list(ordered.values())


def _aliases(known: Mapping[str, _Known]) -> dict[str, str]:
    """What effects call a cause whose id is not a UUID, and by which hash it is known here. Such a
    message is a foreign publisher's, the first of its chain; or a signal to a saga, whose source is
    one of the services that these messages belong to."""
    found = {
        each.correlation_id: each.id
        for each in known.values()
        if ":" in each.id and not each.causation_id
    }
    sources = {f"/{each.name.partition('.')[0]}" for each in known.values() if each.name}
    causes = {each.causation_id for each in known.values() if each.causation_id}
    for cause in causes - known.keys() - found.keys():
        for source in sources:
            if (hashed := Envelope({"id": cause, "source": source}, b"").unique_id) in known:
                found[cause] = hashed
    return found


def _age(each: _Known) -> tuple[float, str]:
    times = [each.created_at, *(sighting.at for sighting in each.sightings)]
    first = min((moment.timestamp() for moment in times if moment is not None), default=0.0)
    return first, each.id


def _traced(each: _Known, depth: int) -> TracedMessage:
    return TracedMessage(
        each.id,
        each.name,
        each.key,
        each.correlation_id,
        each.causation_id,
        each.created_at,
        tuple(sorted(each.sightings, key=_moment)),
        depth,
    )


def _moment(sighting: Sighting) -> tuple[bool, float, str]:
    at = sighting.at
    return at is None, 0.0 if at is None else at.timestamp(), sighting.place


def services_of(messages: Iterable[TracedMessage]) -> list[str]:
    """The services that published or handled these, in the order of their first appearance; empty
    for one whose name is not known."""
    found: dict[str, None] = {}
    for each in messages:
        if each.sightings:
            found[(each.name or "").partition(".")[0]] = None
        for sighting in each.sightings:
            if sighting.what != "outbox":
                found[sighting.place.partition(".")[0]] = None
    return list(found)
