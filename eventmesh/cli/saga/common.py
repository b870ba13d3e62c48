"""What the commands about sagas share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.actions import reached
from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.persistence.database import Database
    from eventmesh.persistence.sagas import SagaRow
    from eventmesh.runtime.declaring.service import DeclaredService as Service

Name = Annotated[str, typer.Argument(help="The service that owns the saga.", metavar="SERVICE")]
SagaId = Annotated[
    str, typer.Argument(help="Id of the saga, or its beginning if no other has it.", metavar="ID")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

STATUSES = ("running", "undoing", "parked", "completed", "undone", "cancelled")


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[tuple[Service, Database]]:
    """The service, with its database at the migration that this version needs."""
    from eventmesh.operations.sagas import place_of_sagas

    async with (
        reached(name) as (reach, service),
        reach.database(place_of_sagas(reach, service)) as database,
    ):
        yield service, database


async def the_saga(service: Service, database: Database, saga_id: str) -> SagaRow:
    """The saga with this id or beginning of an id; UsageError for none, or several."""
    from eventmesh.persistence import sagas

    if not saga_id:  # as a script passes it whose variable is not set
        raise UsageError(f"The id of the saga is empty: see `eventmesh saga list {service.name}`.")
    async with database.reading() as connection:
        found = await sagas.find_by_id(connection, service.name, saga_id)
    if not found:
        raise UsageError(
            f"{service.name} has no saga {saga_id}: see `eventmesh saga list {service.name}`."
        )
    if len(found) > 1:
        raise UsageError(
            f"{saga_id} begins the ids of several sagas of {service.name}, such as {found[0].id} "
            f"and {found[1].id}: write more of it."
        )
    return found[0]


def age(seconds: float) -> str:
    """A duration for people: `45 s`, `12 min`, `3 h`, `2 d`."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def parent_of(row: SagaRow) -> dict[str, str] | None:
    """The saga of which this one is a child, and the label of its step that this one answers."""
    parent = (row.details or {}).get("parent")
    if not parent:
        return None
    saga, _, saga_id = parent[0].partition("/")
    return {"saga": saga, "id": saga_id, "step": parent[1]}


def summary(row: SagaRow) -> dict[str, Any]:
    """A saga for JSON."""
    return {
        "id": row.id,
        "saga": row.name,
        "version": row.version,
        "status": row.status,
        "key": row.key,
        "parent": parent_of(row),
        "waiting_for": [label for label in (row.waiting_for or "").split(",") if label],
        "reason": row.reason,
        "times_out_at": row.due_at and row.due_at.isoformat(),
        "started_at": row.started_at and row.started_at.isoformat(),
        "updated_at": row.updated_at and row.updated_at.isoformat(),
        "ended_at": row.ended_at and row.ended_at.isoformat(),
    }
