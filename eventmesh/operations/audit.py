"""Is anything missing? The balance sheet of all messages that go through an outbox.

Counters in the databases (`persistence.counts`) say how many messages went each way, and the tables
and the broker hold the rest. Three equations must hold, for each publishing service and message:

    outbox    stored = relayed + waiting + parked + skipped
    delivery  relayed = handled + ready + delayed + in flight + dead + discarded + accepted,
              for each subscription that takes the message
    inbox     handled = remembered + forgotten, for each subscription

Say that `orders` has stored 10 of `orders.placed`: 1 waits in the outbox and 9 are relayed. Of
these, `billing.charge` has handled 6, 1 is to be retried, and 1 is a dead letter:

    outbox    10 = 9 + 1              balanced
    delivery   9 = 6 + 1 + 1 + missing: 1 was lost on the broker, or its dead letter was deleted

Each equation is about one subscription: two that take one message get a copy each, and balance
apart. A subscription that was declared after messages had been sent did not get them; its balance
begins when an operator accepts that difference.

Messages move while they are counted. So the outboxes are read first, then the broker, then the
inboxes: a message that moves on is counted twice, and never missed. What is missing is missing.
Where there is a surplus, the outboxes are read once more, after the inboxes, and only what cannot
have been published by then is too many. Say that 5 more are stored, relayed and handled between the
first reading and the last:

    delivery   9 = 11 + 1 + 1 - 4     a surplus of 4
               14 published by now: 11 handled and 1 dead letter are not too many

Left out are messages that do not go through an outbox of a service here, and the time-outs of
sagas, which are deleted when they are not needed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from eventmesh.errors import EventMeshError
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.reach import Place, Reach
from eventmesh.persistence import counts, inbox
from eventmesh.persistence.counts import Books, Way
from eventmesh.runtime.consuming.dead_letter_signal import SIGNAL_SUFFIX
from eventmesh.runtime.declaring.handler import Handler
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.transports.base import DeadLetter, SubscriptionStats, Transport
from eventmesh.transports.census import Census

PAUSE = 0.5
"""Seconds until a difference is measured again: what an operator moves meanwhile, such as dead
letters that are replayed, may be missed once."""

TRIES = 3
_ALL_LETTERS = 100_000


@dataclass(frozen=True, slots=True)
class OutboxLine:
    """One message of one publishing service, in the outbox of these services."""

    services: tuple[str, ...]
    source: str
    name: str
    stored: int
    relayed: int
    waiting: int
    parked: int
    skipped: int
    accepted: int
    delayed: int = 0
    """How many of those that wait were delayed by their publisher."""

    @property
    def perhaps_published(self) -> int:
        """How many the broker may have. A relay deletes and counts what it has published only
        afterwards, and a message that one queue has rejected may be in others."""
        return self.relayed + self.waiting - self.delayed + self.parked

    @property
    def missing(self) -> int:
        """How many left the outbox without being published; below 0, how many too many there
        are."""
        left = self.relayed + self.skipped + self.accepted
        return self.stored - left - self.waiting - self.parked


@dataclass(frozen=True, slots=True)
class DeliveryLine:
    """One message of one publishing service, in one subscription. `published` is how many may have
    been published when all else had been counted, which is more than `relayed` while messages move;
    `unseen` is how many more the broker may hold without showing them; None is any number.
    `began_late` says that the subscription was declared after the first of these messages had been
    stored."""

    subscription: str
    source: str
    name: str
    relayed: int
    handled: int
    ready: int
    delayed: int
    in_flight: int
    dead: int
    discarded: int
    accepted: int
    published: int | None
    unseen: int | None = 0
    began_late: bool = False

    @property
    def on_its_way(self) -> int:
        """How many the broker is about to deliver, perhaps once more."""
        return self.ready + self.delayed + self.in_flight

    @property
    def gone(self) -> int:
        """How many the broker will not deliver any more."""
        return self.handled + self.dead + self.discarded + self.accepted

    @property
    def missing(self) -> int:
        """How many are nowhere; below 0, how many too many there are."""
        missing = self.relayed - self.gone - self.on_its_way
        if missing >= 0:
            return missing
        return 0 if self.published is None else min(0, self.published - self.gone)

    @property
    def counted_twice(self) -> int:
        """How many more there are than had been relayed at first."""
        return max(0, self.gone + self.on_its_way - self.relayed)

    @property
    def is_uncertain(self) -> bool:
        """Whether what is missing may be on the broker unseen, or what was counted twice has moved
        meanwhile or is on its way."""
        if self.missing > 0:
            return self.unseen is None or self.missing <= self.unseen
        return self.missing == 0 and self.counted_twice > 0


@dataclass(frozen=True, slots=True)
class InboxLine:
    """The memory of one subscription."""

    subscription: str
    handled: int
    remembered: int
    forgotten: int
    accepted: int

    @property
    def missing(self) -> int:
        """How many were removed by others than the purge; below 0, how many were added."""
        return self.handled - self.remembered - self.forgotten - self.accepted


@dataclass(frozen=True, slots=True)
class Difference:
    """An equation that does not hold. `way` is how it is accepted, in the database of `service`."""

    equation: str
    where: str
    name: str
    source: str
    missing: int
    suspects: tuple[str, ...]
    service: str
    way: Way


def sentence(difference: Difference) -> str:
    """What does not balance, in one line."""
    number = abs(difference.missing)
    what = difference.name or "messages"
    verb = "missing" if difference.missing > 0 else "too many"
    return f"{difference.where}: {number:,} of {what} {verb}"


@dataclass(frozen=True, slots=True)
class BalanceSheet:
    """All lines, the equations that do not hold, what could not be balanced and why, and who did
    not answer."""

    taken_at: datetime
    outboxes: tuple[OutboxLine, ...]
    deliveries: tuple[DeliveryLine, ...]
    inboxes: tuple[InboxLine, ...]
    differences: tuple[Difference, ...] = ()
    late: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def unaccounted(self) -> int:
        """How many messages are missing or too many."""
        return sum(abs(each.missing) for each in self.differences)


@dataclass(slots=True)
class _OnBroker:
    census: Census = field(default_factory=Census)
    stats: dict[str, SubscriptionStats] = field(default_factory=dict)
    dead: dict[str, Sequence[DeadLetter]] = field(default_factory=dict)
    problem: str = ""


async def audit(reach: Reach) -> BalanceSheet:
    """Draw up the sheet; where something does not balance, measure again, twice at the most."""
    sheet = await _measure(reach)
    for _ in range(TRIES - 1):
        if not sheet.differences:
            break
        await reach.clock.sleep(PAUSE)
        sheet = await _measure(reach)
    return sheet


async def accept(reach: Reach, differences: Iterable[Difference], who: str, reason: str) -> None:
    """Let these differences count as explained from now on; each is recorded in the log of actions.
    Unreachable."""
    places = {name: place for place in reach.databases for name in place.services}
    for each in differences:
        details = {"equation": each.equation, "message": each.name, "missing": each.missing}
        action = Action(each.service, who, "accept difference", each.where, reason, details)
        async with (
            recorded(reach, action) as recording,
            reach.database(places[each.service]) as database,
            database.connection() as connection,
        ):
            await counts.add_now(connection, {each.way: each.missing})
            recording.outcome = f"accepted: {sentence(each)}"


async def _measure(reach: Reach) -> BalanceSheet:
    problems: list[str] = []
    before = await _read_all_books(reach, problems)
    on_broker = await _ask_broker(reach)
    if on_broker.problem:
        problems.append(on_broker.problem)
    after = await _read_all_books(reach, problems)
    buried = await _already_handled(reach, on_broker, problems)
    outboxes = [line for place, books in before.items() for line in outbox_lines(place, books)]
    relayed = Counter[tuple[str, str]]()
    for line in outboxes:
        relayed[line.source, line.name] += line.relayed
    first = {
        (total.way.source, total.way.name): total.since
        for books in before.values()
        for total in books.totals
        if total.way.what == "stored"
    }
    deliveries = list[DeliveryLine]()
    left_out: dict[str, list[str]] = {}
    """The subscriptions that cannot be balanced, by the reason."""
    books_of = {name: books for place, books in after.items() for name in place.services}
    for service in reach.services:
        for handler in service.handlers.values():
            if why := _why_not(service, handler, books_of, on_broker):
                left_out.setdefault(why, []).append(handler.subscription.name)
                continue
            books = books_of[service.name]
            deliveries += delivery_lines(handler, books, on_broker, relayed, first, buried)
    if any(line.missing < 0 for line in deliveries):
        deliveries = await _with_the_latest_published(reach, before, deliveries, problems)
    notes = [f"not balanced: {', '.join(names)}, {why}" for why, names in left_out.items()]
    inboxes = [line for books in after.values() for line in inbox_lines(books)]
    found = [*_outbox_differences(outboxes), *_inbox_differences(inboxes)]
    late, uncertain = list[Difference](), list[str]()
    for delivery in deliveries:
        if delivery.is_uncertain:
            uncertain.append(_describe_uncertain(delivery))
        elif delivery.missing == 0:
            continue
        elif delivery.began_late and delivery.missing > 0:
            late.append(_delivery_difference(delivery))
        else:
            found.append(_delivery_difference(delivery))
    return BalanceSheet(
        reach.clock.now(),
        tuple(outboxes),
        tuple(deliveries),
        tuple(inboxes),
        tuple(found),
        tuple(late),
        (*notes, *uncertain),
        tuple(dict.fromkeys(problems)),
    )


async def _read_all_books(reach: Reach, problems: list[str]) -> dict[Place, Books]:
    """Of each database that answers."""

    async def read(place: Place) -> Books | None:
        try:
            async with reach.database(place) as database, database.reading() as connection:
                now = await database.time.ask(connection)
                return await counts.read_books(connection, now)
        except EventMeshError as error:
            problems.append(str(error))
            return None

    books = await asyncio.gather(*(read(place) for place in reach.databases))
    pairs = zip(reach.databases, books, strict=True)
    return {place: found for place, found in pairs if found is not None}


async def _with_the_latest_published(
    reach: Reach,
    before: Mapping[Place, Books],
    deliveries: Iterable[DeliveryLine],
    problems: list[str],
) -> list[DeliveryLine]:
    """The lines with what may have been published until now, which includes all that had taken
    effect when the inboxes were read."""
    latest = await _read_all_books(reach, problems)
    published = Counter[tuple[str, str]]()
    for place, books in latest.items():
        for line in outbox_lines(place, books):
            published[line.source, line.name] += line.perhaps_published
    all_answered = latest.keys() >= before.keys()
    return [
        replace(line, published=published[line.source, line.name] if all_answered else None)
        for line in deliveries
    ]


async def _ask_broker(reach: Reach) -> _OnBroker:
    found = _OnBroker()
    handlers = [each for service in reach.services for each in service.handlers.values()]
    untouched = {
        name
        for service in reach.services
        if not service.needs_database
        for name in service.handlers
    }
    try:
        async with reach.broker() as transport:
            found.census = await transport.census(
                [handler.subscription for handler in handlers], untouched=untouched
            )
            for handler in handlers:
                await _ask_about(transport, handler, found)
    except EventMeshError as error:
        found.problem = str(error)
    return found


async def _ask_about(transport: Transport, handler: Handler, found: _OnBroker) -> None:
    subscription = handler.subscription
    found.stats[subscription.name] = stats = await transport.stats(subscription)
    if handler.transactional and stats.dead:
        found.dead[subscription.name] = await transport.dead_letters(
            subscription, limit=_ALL_LETTERS
        )


async def _already_handled(
    reach: Reach, on_broker: _OnBroker, problems: list[str]
) -> dict[str, set[str]]:
    """By subscription, the ids of dead letters whose message has taken effect: a copy that came
    after a lost worker, for example, and could not be read any more."""
    found: dict[str, set[str]] = {}
    for place in reach.databases:
        names = {
            name for each in reach.services if each.name in place.services for name in each.handlers
        } & on_broker.dead.keys()
        if not names:
            continue
        try:
            async with reach.database(place) as database, database.reading() as connection:
                for name in names:
                    ids = [letter.envelope.unique_id for letter in on_broker.dead[name]]
                    found[name] = await inbox.remembered(connection, name, ids)
        except EventMeshError as error:
            problems.append(str(error))
    return found


def _why_not(
    service: Service, handler: Handler, books_of: Mapping[str, Books], on_broker: _OnBroker
) -> str:
    """Why nothing can be said of a subscription; empty if it can be balanced."""
    stats = on_broker.stats.get(handler.subscription.name)
    if not handler.transactional:
        return "because a handler without a transaction does not record what it has handled"
    if service.name not in books_of:
        return "because the database did not answer"
    if stats is None:
        return "because the broker did not answer"
    if stats.declared is False:
        return "because no worker has declared it on the broker yet"
    return ""


def outbox_lines(place: Place, books: Books) -> list[OutboxLine]:
    """The first equation, for each message that was stored in this database."""
    names = {
        (total.way.source, total.way.name)
        for total in books.totals
        if total.way.what in ("stored", "relayed", "skipped")
    } | {(source, name) for source, name, _ in books.outbox}
    return [
        OutboxLine(
            place.services,
            source,
            name,
            books.number(Way("stored", "", source, name)),
            books.number(Way("relayed", "", source, name)),
            sum(
                books.outbox.get((source, name, state), 0)
                for state in ("due", "delayed", "rejected")
            ),
            books.outbox.get((source, name, "parked"), 0),
            books.number(Way("skipped", "", source, name)),
            books.number(Way("accepted", "", source, name)),
            books.outbox.get((source, name, "delayed"), 0),
        )
        for source, name in sorted(names)
        if not name.endswith(SIGNAL_SUFFIX)
    ]


def delivery_lines(
    handler: Handler,
    books: Books,
    on_broker: _OnBroker,
    relayed: Mapping[tuple[str, str], int],
    first: Mapping[tuple[str, str], datetime],
    buried: Mapping[str, set[str]],
) -> Iterator[DeliveryLine]:
    """The second equation, for each message that a subscription takes and somebody publishes."""
    subscription = handler.subscription
    declared = {
        total.way.name: total.since
        for total in books.totals
        if total.way.what == "declared" and total.way.subscription == subscription.name
    }
    dead = Counter(
        (counts.publisher_of(letter.envelope), letter.envelope.name)
        for letter in on_broker.dead.get(subscription.name, ())
        if letter.envelope.unique_id not in buried.get(subscription.name, ())
    )
    unseen = _unseen(subscription.name, on_broker)
    for source, name in sorted(relayed):
        if name not in subscription.messages or name.endswith(SIGNAL_SUFFIX):
            continue
        held = {
            state: on_broker.census.sources[subscription.name, name, f"/{source}", state]
            for state in ("ready", "delayed", "in_flight")
        }
        since = declared.get(name)
        yield DeliveryLine(
            subscription.name,
            source,
            name,
            relayed[source, name],
            books.number(Way("handled", subscription.name, source, name)),
            held["ready"],
            held["delayed"],
            held["in_flight"],
            dead[source, name],
            books.number(Way("discarded", subscription.name, source, name)),
            books.number(Way("accepted", subscription.name, source, name)),
            relayed[source, name],
            unseen,
            since is None or ((source, name) in first and first[source, name] < since),
        )


def _unseen(subscription: str, on_broker: _OnBroker) -> int | None:
    """How many messages the broker may hold for a subscription without showing them."""
    number = 0
    stats = on_broker.stats[subscription]
    for hidden in on_broker.census.hidden:
        if hidden.subscription not in ("", subscription) or hidden.state == "unrouted":
            continue
        if hidden.state == "in_flight" and (stats.consumers == 0 or stats.in_flight is not None):
            number += stats.in_flight or 0
        elif hidden.number is None:
            return None
        else:
            number += hidden.number
    return number


def inbox_lines(books: Books) -> list[InboxLine]:
    """The third equation, for each subscription of this database."""
    names = {total.way.subscription for total in books.totals if total.way.what == "handled"}
    handled: Counter[str] = Counter()
    for total in books.totals:
        if total.way.what == "handled":
            handled[total.way.subscription] += total.number
    return [
        InboxLine(
            name,
            handled[name],
            books.inbox.get(name, 0),
            books.number(Way("forgotten", name, "", "")),
            books.number(Way("accepted", name, "", "")),
        )
        for name in sorted(names | books.inbox.keys())
    ]


def _outbox_differences(lines: Iterable[OutboxLine]) -> Iterator[Difference]:
    for line in lines:
        if line.missing:
            yield Difference(
                "outbox",
                f"outbox of {', '.join(line.services)}",
                line.name,
                line.source,
                line.missing,
                ("rows deleted from eventmesh_outbox", "a database restored from a backup")
                if line.missing > 0
                else ("rows inserted into eventmesh_outbox by hand", "counters that were lost"),
                line.services[0],
                Way("accepted", "", line.source, line.name),
            )


def _inbox_differences(lines: Iterable[InboxLine]) -> Iterator[Difference]:
    for line in lines:
        if line.missing:
            yield Difference(
                "inbox",
                f"inbox of {line.subscription}",
                "",
                "",
                line.missing,
                ("rows deleted from eventmesh_inbox: copies of these would take effect again",)
                if line.missing > 0
                else ("rows inserted into eventmesh_inbox by hand", "counters that were lost"),
                line.subscription.partition(".")[0],
                Way("accepted", line.subscription, "", ""),
            )


def _suspects(line: DeliveryLine) -> tuple[str, ...]:
    """What may have happened where the line does not balance."""
    if line.missing > 0:
        return (
            "messages deleted on the broker: a purged queue, a trimmed stream, a server that lost "
            "its data",
            "dead letters that were deleted without `eventmesh dlq discard`",
            "a worker of an older version, which does not count",
        )
    foreign = f"messages that were published as /{line.source} without its outbox"
    if line.published is not None and line.handled <= line.published:
        return (foreign,)
    return ("messages that took effect twice, because the inbox had forgotten them", foreign)


def _delivery_difference(line: DeliveryLine) -> Difference:
    return Difference(
        "delivery",
        line.subscription,
        line.name,
        line.source,
        line.missing,
        _suspects(line),
        line.subscription.partition(".")[0],
        Way("accepted", line.subscription, line.source, line.name),
    )


def _describe_uncertain(line: DeliveryLine) -> str:
    what = f"{line.name} of {line.subscription}"
    if line.missing > 0:
        return (
            f"{line.missing:,} of {what} may be on the broker, where they cannot be seen: they are "
            f"in flight, or wait for a retry"
        )
    return (
        f"{line.counted_twice:,} of {what} are counted twice: they moved meanwhile, or they or "
        f"copies of them are on their way"
    )
