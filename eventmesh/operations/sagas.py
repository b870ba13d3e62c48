"""Sagas as operators see them, and what they decide on one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from eventmesh.errors import UsageError
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.reach import Place, Reach
from eventmesh.persistence import sagas
from eventmesh.persistence.existing import was_never_made
from eventmesh.persistence.sagas import SagaLot, SagaRow
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.saga.cancelling import cancel_saga
from eventmesh.saga.coordinator import coordinator_of
from eventmesh.saga.draft import Transition
from eventmesh.saga.happening import OperatorAction

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
    older_than: timedelta | None = None,
    limit: int,
) -> SagaListing:
    """Without statuses, the open ones; those of a key in any status. Also of sagas that are not in
    the service's code any more; UsageError where there are none, and its code has no
    saga."""
    chosen = statuses or (OPEN if key is None else ())
    async with (
        reach.database(place_of_sagas(reach, service)) as database,
        database.reading() as connection,
    ):
        census = await sagas.census(connection)
        lots = [lot for lot in census if lot.name.startswith(f"{service.name}.")]
        # Their index serves whole names only; others are found by the key, or read all the same.
        only_open = bool(chosen) and set(chosen) <= set(OPEN)
        before = None
        if older_than is not None:
            before = await database.time.ask(connection) - older_than
        rows = await sagas.find(
            connection,
            service.name,
            names={*service.sagas, *(lot.name for lot in lots)} if only_open else (),
            statuses=chosen,
            step=step,
            key=key,
            started_before=before,
            most=limit,
        )
    if not (lots or rows or service.sagas):
        raise _no_saga(service)
    return SagaListing(tuple(lots), tuple(rows), len(rows) >= limit)


async def find_saga(reach: Reach, service: Service, saga_id: str) -> SagaStory | None:
    """The saga with this id, which may be shortened if no other begins so; None if there is
    none."""
    if not saga_id:
        return None
    async with (
        reach.database(place_of_sagas(reach, service)) as database,
        database.reading() as connection,
    ):
        found = await sagas.find_by_id(connection, service.name, saga_id)
        if len(found) != 1:
            return None
        log = await sagas.log_of(connection, found[0].name, found[0].id)
    return SagaStory(found[0], tuple(log))


async def operate(
    reach: Reach, service: Service, row: SagaRow, decision: OperatorAction, who: str
) -> Transition:
    """Do what an operator has decided: a transition of the saga like any other, committed with what
    it sends, and recorded in its log and in the log of actions. Conflict where the saga has changed
    since the operator saw it; UsageError where its state does not allow it. A saga that is not in
    the code any more can only be cancelled."""
    place = place_of_sagas(reach, service)
    act: Callable[..., Awaitable[Transition]]
    if row.name in service.sagas:
        act = coordinator_of(service, row.name).operate
    elif decision.operation == "cancel":
        act = partial(cancel_saga, row.name)
    else:
        raise UsageError(
            f"The code of service {service.name!r} has no saga {row.name} any more, so that it "
            f"does not say how to {decision.operation} it. Give the saga to service.include "
            f"again, or settle it by hand and end it: `eventmesh saga cancel {service.name} "
            f"{row.id} --reason …`."
        )
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
                    transition = await act(row.id, decision, who, transaction)
                await unit.commit()
            await database.notifier.notify()  # without NOTIFY, relays poll
        record = transition.record
        recording.outcome = record.status
        if record.waiting:
            recording.outcome += f", waits for {', '.join(record.waiting)}"
    return transition


def place_of_sagas(reach: Reach, service: Service) -> Place:
    """The database that keeps the sagas of a service, perhaps only of some that are not in its code
    any more; UsageError where there cannot be any."""
    place = reach.place_of(service.name)
    if place is None or (not service.sagas and was_never_made(place.url, service.name)):
        raise _no_saga(service)
    return place


def _no_saga(service: Service) -> UsageError:
    return UsageError(f"Service {service.name!r} has no saga: nothing is given to service.include.")
