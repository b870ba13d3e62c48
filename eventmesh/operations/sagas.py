"""Sagas as operators see them, and what they decide on one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from eventmesh.errors import UsageError
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.reach import Place, Reach
from eventmesh.persistence import sagas
from eventmesh.persistence.sagas import SagaLot, SagaRow
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.coordinator import coordinator_of
from eventmesh.saga.happening import OperatorAction
from eventmesh.saga.record import SagaRecord

OPEN = ("running", "undoing", "parked")
STATUSES = (*OPEN, "completed", "undone", "cancelled")


@dataclass(frozen=True, slots=True)
class SagaListing:
    """The open sagas of a service counted by what they wait for, and the oldest that match.
    `is_cut` if there may be more of these."""

    lots: tuple[SagaLot, ...]
    rows: tuple[SagaRow, ...]
    is_cut: bool


@dataclass(frozen=True, slots=True)
class SagaStory:
    """A saga, with all that has happened to it, oldest first."""

    row: SagaRow
    log: tuple[tuple[datetime, Mapping[str, Any]], ...]


async def list_sagas(
    reach: Reach,
    service: Service,
    *,
    statuses: Sequence[str] = (),
    step: str | None = None,
    key: str | None = None,
    limit: int,
) -> SagaListing:
    """Without statuses, the open ones; those of a key in any status."""
    async with (
        reach.database(place_of_sagas(reach, service)) as database,
        database.reading() as connection,
    ):
        # Other services may share the database, and code may have lost a saga that still runs.
        own = f"{service.name}."
        lots = [lot for lot in await sagas.census(connection) if lot.name.startswith(own)]
        rows = await sagas.find(
            connection,
            names={*service.sagas, *(lot.name for lot in lots)},
            statuses=statuses or (OPEN if key is None else ()),
            step=step,
            key=key,
            most=limit,
        )
    return SagaListing(tuple(lots), tuple(rows), len(rows) >= limit)


async def find_saga(reach: Reach, service: Service, saga_id: str) -> SagaStory | None:
    """The saga with this id, which may be shortened if no other begins so; None if there is
    none."""
    async with (
        reach.database(place_of_sagas(reach, service)) as database,
        database.reading() as connection,
    ):
        found = await sagas.find_by_id(connection, tuple(service.sagas), saga_id)
        if len(found) != 1:
            return None
        log = await sagas.log_of(connection, found[0].name, found[0].id)
    return SagaStory(found[0], tuple(log))


async def operate(
    reach: Reach, service: Service, row: SagaRow, decision: OperatorAction, who: str
) -> SagaRecord:
    """Do what an operator has decided: a transition of the saga like any other, committed with what
    it sends, and recorded in its log and in the log of actions. UsageError where the saga's state
    does not allow it."""
    place, coordinator = place_of_sagas(reach, service), coordinator_of(service, row.name)
    action = Action(
        service.name,
        who,
        f"{decision.operation} saga",
        f"{row.name} {row.id}",
        decision.reason,
        {} if decision.step is None else {"step": decision.step},
    )
    async with recorded(reach, action) as recording:
        async with reach.database(place) as database:
            async with database.unit_of_work(service.sender()) as unit:
                with unit.transaction() as transaction:
                    transition = await coordinator.operate(row.id, decision, who, transaction)
                await unit.commit()
            await database.notifier.notify()  # without NOTIFY, relays poll
        record = transition.record
        recording.outcome = record.status
        if record.waiting:
            recording.outcome += f", waits for {', '.join(record.waiting)}"
    return record


def place_of_sagas(reach: Reach, service: Service) -> Place:
    """The database that keeps the sagas of a service; UsageError where it has none."""
    place = reach.place_of(service.name)
    if place is None or not service.sagas:
        raise UsageError(
            f"Service {service.name!r} has no saga: nothing is given to service.include."
        )
    return place
