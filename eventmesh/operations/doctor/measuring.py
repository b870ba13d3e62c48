"""Measures everything that the checks need: the only part of the doctor that asks servers.

What cannot be measured is in the result as an error, never left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from eventmesh.contracts.locks.drift import refuse_drift
from eventmesh.errors import EventMeshError
from eventmesh.operations.reach import Place, Reach
from eventmesh.operations.status import MeshStatus, mesh_status
from eventmesh.persistence import sagas
from eventmesh.persistence.examination import DatabaseFacts, examine
from eventmesh.persistence.own_tables import require_own_tables
from eventmesh.persistence.sagas import SagaLot
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings, UnknownVariable
from eventmesh.runtime.relaying.purger import check_window
from eventmesh.transports.facts import BrokerFacts

EXAMINATION_TIMEOUT = 60.0
"""Seconds for the broker: listing the streams of a Redis with millions of other keys takes some."""


@dataclass(frozen=True, slots=True)
class MeasuredDatabase:
    """A database: its facts, or the error that it answered with. `drift` says where it differs
    from what the code of its services needs."""

    place: Place
    facts: DatabaseFacts | None = None
    error: EventMeshError | None = None
    drift: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Measured:
    """All facts. `broker` is None where it did not answer, for the reason in `broker_error`.
    `unrouted` are the messages without a subscription, by name; None where they could not be
    counted. `drift` says where code differs from frozen schemas, and `window` where the inbox
    forgets too early, each by service."""

    settings: Settings
    services: tuple[Service, ...]
    unknown_variables: tuple[UnknownVariable, ...]
    status: MeshStatus
    broker: BrokerFacts | None
    broker_error: EventMeshError | None
    databases: tuple[MeasuredDatabase, ...]
    unrouted: Mapping[str, int] | None = None
    drift: Mapping[str, str] = field(default_factory=dict)
    window: Mapping[str, str] = field(default_factory=dict)


async def measure(reach: Reach, unknown_variables: Sequence[UnknownVariable] = ()) -> Measured:
    """Measure everything. An error of a server is part of the result."""
    status = await mesh_status(reach)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(_measure_database(reach, place)) for place in reach.databases]
        broker, unrouted, error = await _measure_broker(reach)
    return Measured(
        reach.settings,
        reach.services,
        tuple(unknown_variables),
        status,
        broker,
        error,
        tuple(each.result() for each in asking),
        unrouted,
        drift=_errors_of(reach.services, lambda service: _refuse_drift(service, reach.settings)),
        window=_errors_of(reach.services, lambda service: _check_window(service, reach.settings)),
    )


async def _measure_broker(
    reach: Reach,
) -> tuple[BrokerFacts | None, Mapping[str, int] | None, EventMeshError | None]:
    published = {name for service in reach.services for name in service.registry.published_names()}
    facts = None
    try:
        async with reach.broker(EXAMINATION_TIMEOUT) as transport:
            facts = await transport.examine(thorough=True)
            unrouted = await transport.unrouted(published)
    except EventMeshError as error:
        return facts, None, error
    return facts, {each.message: each.number for each in unrouted}, None


async def _measure_database(reach: Reach, place: Place) -> MeasuredDatabase:
    try:
        async with reach.at_any_migration(place) as database:
            facts = await examine(database, reach.settings.lease_time)
            lots: Sequence[SagaLot] = ()
            if facts.migration == facts.head:
                async with database.reading() as connection:
                    lots = await sagas.census(connection)
            drift: list[str] = []
            for service in reach.services:
                if service.name not in place.services:
                    continue
                drift += _error_of(partial(service.refuse_stranded, lots))
                if service.metadata is not None:
                    try:
                        await require_own_tables(database, service.metadata)
                    except EventMeshError as error:
                        drift.append(str(error))
    except EventMeshError as error:
        return MeasuredDatabase(place, error=error)
    return MeasuredDatabase(place, facts, drift=tuple(drift))


def _refuse_drift(service: Service, settings: Settings) -> None:
    refuse_drift(service.registry.owned(), settings.schemas)
    for saga in service.sagas.values():
        saga.refuse_drift(settings.schemas)
    for reaction in service.reactions:
        reaction.require_undo()


def _check_window(service: Service, settings: Settings) -> None:
    if service.needs_database:
        check_window(service.handlers.values(), settings)


def _errors_of(services: Sequence[Service], check: Callable[[Service], None]) -> dict[str, str]:
    """What a check says against services, by their names."""
    found = {}
    for service in services:
        if said := _error_of(partial(check, service)):
            found[service.name] = said[0]
    return found


def _error_of(check: Callable[[], None]) -> list[str]:
    """What a check says, if it raises an error of ours, or one of the user's code that it calls."""
    try:
        check()
    except EventMeshError as error:
        return [str(error)]
    except Exception as error:  # noqa: BLE001  # a user's back-off may raise anything
        return [f"{type(error).__name__}: {error}"]
    return []
