"""What all databases and the broker of this environment know of some messages.

Databases tell what has taken effect, what waits in an outbox, and sagas; the broker tells what it
holds and its dead letters. All are asked at the same time. One that does not answer is a problem
in the answer, and a place that cannot be looked into is listed, so that nobody takes what is
missing here for what is not there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from eventmesh.errors import EventMeshError
from eventmesh.operations.reach import Place, Reach
from eventmesh.persistence import journal, sagas
from eventmesh.persistence.journal import Begun, Handled
from eventmesh.persistence.outbox import parked
from eventmesh.persistence.outbox.parked import Waiting
from eventmesh.persistence.sagas import SagaRow
from eventmesh.transports.base import DeadLetter
from eventmesh.transports.census import Hidden
from eventmesh.transports.finding import Located, matches

MOST = 1_000
"""How many rows of a kind are read from a place."""

_ALL_LETTERS = 100_000


@dataclass(frozen=True, slots=True)
class Question:
    """Messages with these ids, and those that come from them; or those of a key."""

    ids: frozenset[str] = frozenset()
    key: str | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """What a message on the broker is found by."""
        return self.ids if self.key is None else frozenset([self.key])


@dataclass(frozen=True, slots=True)
class SagaHistory:
    """A saga, its state left out, with its log."""

    row: SagaRow
    log: tuple[tuple[datetime, Mapping[str, Any]], ...]


@dataclass(frozen=True, slots=True)
class InDatabase:
    """What a database knows. `problem` says why it has told nothing."""

    services: tuple[str, ...]
    handled: tuple[Handled, ...] = ()
    begun: tuple[Begun, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    sagas: tuple[SagaHistory, ...] = ()
    searched_since: datetime | None = None
    """If messages that took effect earlier were not searched for the key."""
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class OnBroker:
    """What the broker knows. `problem` says why it has told nothing, or not all."""

    located: tuple[Located, ...] = ()
    dead: tuple[DeadLetter, ...] = ()
    hidden: tuple[Hidden, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """The answer of all places."""

    databases: tuple[InDatabase, ...] = ()
    broker: OnBroker = field(default_factory=OnBroker)

    @property
    def problems(self) -> tuple[str, ...]:
        """Why parts of the answer are missing."""
        found = [*(each.problem for each in self.databases), self.broker.problem]
        return tuple(dict.fromkeys(problem for problem in found if problem))

    @property
    def correlation_ids(self) -> frozenset[str]:
        """The chains of causes that the messages and sagas belong to."""
        found = {each.envelope.correlation_id for each in self.broker.located}
        found |= {each.envelope.correlation_id for each in self.broker.dead}
        for database in self.databases:
            found |= {each.envelope.correlation_id for each in database.waiting}
            found |= {row.correlation_id or row.message_id for row in database.handled}
            found |= {saga.row.id for saga in database.sagas}
        return frozenset(found - {""})


async def gather(reach: Reach, question: Question) -> Evidence:
    """Ask everybody; nothing is raised for one that does not answer."""
    databases = asyncio.gather(*(_ask_database(reach, each, question) for each in reach.databases))
    broker = await _ask_broker(reach, question)
    return Evidence(tuple(await databases), broker)


async def _ask_database(reach: Reach, place: Place, question: Question) -> InDatabase:
    subscriptions = [
        name for each in reach.services if each.name in place.services for name in each.handlers
    ]
    ids, key = question.ids, question.key
    try:
        async with reach.database(place) as database, database.reading() as connection:
            now = await database.time.ask(connection)
            since = None
            if key is None:
                handled = await journal.handled(connection, subscriptions, ids, MOST)
                rows = await sagas.find_by_ids(
                    connection, ids | {each.message_id for each in handled}, MOST
                )
            else:
                handled = await journal.handled_of_key(connection, key, MOST)
                rows = await sagas.find(connection, key=key, most=MOST)
                since = await journal.searched_since(connection)
            known = ids | {each.message_id for each in handled}
            return InDatabase(
                place.services,
                tuple(handled),
                tuple(await journal.begun(connection, subscriptions, known)),
                tuple(await parked.related(connection, now, ids=ids, key=key, limit=MOST)),
                tuple(
                    [
                        SagaHistory(row, tuple(await sagas.log_of(connection, row.name, row.id)))
                        for row in rows
                    ]
                ),
                since,
            )
    except EventMeshError as error:
        return InDatabase(place.services, problem=str(error))


async def _ask_broker(reach: Reach, question: Question) -> OnBroker:
    handlers = [each for service in reach.services for each in service.handlers.values()]
    subscriptions = [handler.subscription for handler in handlers]
    names: Collection[str] = {
        name for service in reach.services for name in service.registry.published_names()
    } | {name for each in subscriptions for name in each.messages}
    dead: list[DeadLetter] = []
    try:
        async with reach.broker() as transport:
            found = await transport.find(subscriptions, names, question.wanted)
            for subscription in subscriptions:
                if not (await transport.stats(subscription)).dead:
                    continue
                letters = await transport.dead_letters(subscription, limit=_ALL_LETTERS)
                dead += [each for each in letters if matches(each.envelope, question.wanted)]
    except EventMeshError as error:
        return OnBroker(problem=str(error))
    return OnBroker(found.messages[:MOST], tuple(dead[:MOST]), found.hidden)
