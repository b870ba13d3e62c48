"""What waits in a running mesh, and for how long: subscriptions, outboxes and sagas in one answer.

The broker and the databases are asked, not the workers, so the answer is the same while all workers
are down. No message is taken from a queue, and nothing is created. A figure that could not be found
out is None, and `unknown` says why, by the figure's name. A server that does not answer is the
`problem` of everything that it would have told, and the rest of the answer is there all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from eventmesh.errors import EventMeshError
from eventmesh.operations.reach import ANSWER_TIMEOUT, Place, Reach
from eventmesh.persistence import inbox, leases, outbox, pauses, sagas
from eventmesh.persistence.pauses import Pause
from eventmesh.persistence.sagas import SagaLot
from eventmesh.redact import redact
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.transports.base import SubscriptionStats, Transport
from eventmesh.transports.facts import BrokerFacts

RATE_SECONDS = 60.0
"""How far back a rate looks."""

_NO_INBOX = "a handler without a transaction leaves no record of what it has handled"

Unknown = Mapping[str, str]
"""Why figures are None, by their names, in words for people."""


@dataclass(frozen=True, slots=True)
class SubscriptionStatus:
    """What a subscription holds. `oldest_age` is the age in seconds of its oldest ready message,
    None without a reason where none is ready. `held` is how many of the delayed ones wait behind an
    earlier message of their key, in an ordered subscription. `rate` is how many messages a second
    have taken effect, over the last minute. `declared` says whether the broker has the
    subscription. `paused` is None also where the database that would tell does not answer."""

    service: str
    name: str
    messages: tuple[str, ...]
    ready: int | None = None
    delayed: int | None = None
    in_flight: int | None = None
    dead: int | None = None
    oldest_age: float | None = None
    rate: float | None = None
    consumers: int | None = None
    declared: bool | None = None
    held: int | None = None
    paused: Pause | None = None
    problem: str | None = None
    unknown: Unknown = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """What waits to be published from a database. `oldest_age` is for how many seconds the oldest
    due message has waited, None where none is due; `relays` are the processes that publish now.
    With `is_partial`, more are due or delayed than were counted: counting stops at a million."""

    due: int
    delayed: int
    parked: int
    oldest_age: float | None
    relays: int
    is_partial: bool = False


@dataclass(frozen=True, slots=True)
class DatabaseStatus:
    """A database, and the services that keep their state in it. `outbox` is None where there is a
    `problem`. `clock_ahead` is by how many seconds its clock is ahead of this machine's."""

    services: tuple[str, ...]
    url: str
    outbox: OutboxStatus | None = None
    clock_ahead: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SagaStatus:
    """The open sagas of a name. `overdue` had to time out more than a minute ago, and have not;
    parked ones wait for an operator. `oldest_age` is None where none is open."""

    service: str
    name: str
    running: int | None = None
    undoing: int | None = None
    parked: int | None = None
    overdue: int | None = None
    oldest_age: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The broker. `delayed_together` are retries of all subscriptions that are not due, on a broker
    that cannot count them for each."""

    url: str
    version: str | None = None
    clock_ahead: float | None = None
    delayed_together: int | None = None
    problem: str | None = None
    unknown: Unknown = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """All that could be found out, in the order of the services and their handlers."""

    taken_at: datetime
    broker: BrokerStatus
    subscriptions: tuple[SubscriptionStatus, ...]
    databases: tuple[DatabaseStatus, ...]
    sagas: tuple[SagaStatus, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Why parts of the answer are missing, each reason once; empty where nothing is missing."""
        problems = [
            self.broker.problem,
            *(each.problem for each in self.databases),
            *(each.problem for each in self.subscriptions),
        ]
        return tuple(dict.fromkeys(problem for problem in problems if problem))


@dataclass(frozen=True, slots=True)
class _Told:
    """What a database has told."""

    status: DatabaseStatus
    lots: Sequence[SagaLot] = ()
    handled: Mapping[str, int] = field(default_factory=dict)
    """By subscription, in the last `seconds`."""
    seconds: float = RATE_SECONDS
    pauses: Mapping[str, Pause] = field(default_factory=dict)


async def mesh_status(reach: Reach) -> MeshStatus:
    """Ask the broker and all databases of these services, at the same time. One that does not
    answer, or whose URL cannot be used, is a `problem` in the answer; nothing is raised for it."""
    taken_at = reach.clock.now()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(_ask_database(reach, place)) for place in reach.databases]
        broker, stats = await _ask_broker(reach)
    told = [each.result() for each in asking]
    told_of = {name: each for each in told for name in each.status.services}
    return MeshStatus(
        taken_at,
        broker,
        tuple(
            _subscription_status(
                service,
                handler,
                stats.get(handler.subscription.name, broker.problem or ""),
                told_of.get(service.name),
            )
            for service in reach.services
            for handler in service.handlers.values()
        ),
        tuple(each.status for each in told),
        tuple(
            status
            for service in reach.services
            if service.name in told_of
            for status in _saga_statuses(service, told_of[service.name])
        ),
    )


async def _ask_broker(reach: Reach) -> tuple[BrokerStatus, dict[str, SubscriptionStats | str]]:
    """The broker, and for each subscription that it was asked for its counts, or why there are
    none."""
    answers: dict[str, SubscriptionStats | str] = {}
    facts = BrokerFacts()
    try:
        async with reach.broker() as transport:
            facts = await transport.examine()
        for handler in (h for service in reach.services for h in service.handlers.values()):
            # Each for its own time: hundreds of subscriptions take longer than one answer may.
            async with reach.broker() as transport:
                name = handler.subscription.name
                answers[name] = await _stats_or_why(transport, handler)
    except EventMeshError as error:
        return BrokerStatus(reach.shown_broker, facts.version, problem=str(error)), answers
    return (
        BrokerStatus(
            reach.shown_broker,
            facts.version,
            facts.clock_ahead,
            facts.delayed_together,
            unknown=facts.unknown,
        ),
        answers,
    )


async def _stats_or_why(transport: Transport, handler: Handler) -> SubscriptionStats | str:
    """The counts of a subscription, or why there are none although the broker answers: a key of it
    may be another program's. Unreachable if the broker does not answer any more."""
    try:
        return await transport.stats(handler.subscription)
    except EventMeshError as error:
        await transport.examine()
        return str(error)


async def _ask_database(reach: Reach, place: Place) -> _Told:
    seconds = min(RATE_SECONDS, reach.settings.inbox_window)
    try:
        async with reach.database(place) as database, database.reading() as connection:
            before = reach.clock.now()
            now = await database.time.ask(connection)
            middle = before + (reach.clock.now() - before) / 2
            counts = await outbox.stats(connection, now)
            since = await outbox.oldest(connection, now)
            status = OutboxStatus(
                due=counts.pending,
                delayed=counts.delayed,
                parked=counts.parked,
                oldest_age=None if since is None else max((now - since).total_seconds(), 0.0),
                relays=await leases.count_relays(connection, now),
                is_partial=counts.is_partial,
            )
            ahead = (now - middle).total_seconds()
            lots = await sagas.census(connection)
            handled = await inbox.count_since(connection, now - timedelta(seconds=seconds))
            paused = await connection.run_sync(pauses.paused)
    except EventMeshError as error:
        problem = str(error)
        return _Told(DatabaseStatus(place.services, redact(place.url), problem=problem))
    database_status = DatabaseStatus(place.services, redact(place.url), status, ahead)
    return _Told(database_status, lots, handled, seconds, paused)


def _subscription_status(
    service: Service, handler: Handler, stats: SubscriptionStats | str, told: _Told | None
) -> SubscriptionStatus:
    """What is known of a subscription: `stats` are the broker's, or why it has told none; `told` is
    what the service's database has."""
    subscription = handler.subscription
    rate, why_no_rate = _rate(handler, told)
    unknown = {"rate": why_no_rate} if rate is None else {}
    status = SubscriptionStatus(
        service.name,
        subscription.name,
        subscription.messages,
        rate=rate,
        paused=None if told is None else told.pauses.get(subscription.name),
    )
    if isinstance(stats, str):
        why = stats or f"the broker did not answer within {ANSWER_TIMEOUT:g} s"
        figures = (
            "ready",
            "delayed",
            "in_flight",
            "dead",
            "oldest_age",
            "consumers",
            "declared",
            "held",
        )
        return replace(status, problem=why, unknown=dict.fromkeys(figures, why) | unknown)
    return replace(
        status,
        ready=stats.ready,
        delayed=stats.delayed,
        in_flight=stats.in_flight,
        dead=stats.dead,
        oldest_age=stats.oldest_age,
        consumers=stats.consumers,
        declared=stats.declared,
        held=stats.held,
        unknown={**stats.unknown, **unknown},
    )


def _rate(handler: Handler, told: _Told | None) -> tuple[float | None, str]:
    """The rate of a subscription, by the inbox; or why there is none."""
    if told is None or not handler.transactional:
        return None, _NO_INBOX
    if told.status.problem is not None:
        return None, told.status.problem
    return told.handled.get(handler.subscription.name, 0) / told.seconds, ""


def _saga_statuses(service: Service, told: _Told) -> Iterator[SagaStatus]:
    """Of the service's sagas, and of open ones that its code has no more."""
    if told.status.problem is not None:
        for name in service.sagas:
            yield SagaStatus(service.name, name, problem=told.status.problem)
        return
    own = [lot for lot in told.lots if lot.name.startswith(f"{service.name}.")]
    for name in dict.fromkeys([*service.sagas, *(lot.name for lot in own)]):
        lots = [lot for lot in own if lot.name == name]
        yield SagaStatus(
            service.name,
            name,
            running=_count(lots, "running"),
            undoing=_count(lots, "undoing"),
            parked=_count(lots, "parked"),
            overdue=sum(lot.overdue for lot in lots),
            oldest_age=max((lot.age for lot in lots), default=None),
        )


def _count(lots: Iterable[SagaLot], status: str) -> int:
    return sum(lot.count for lot in lots if lot.status == status)
