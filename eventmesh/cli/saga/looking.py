"""`eventmesh saga list`, `show` and `graph`: they change nothing."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.actions import reached
from eventmesh.cli.app import utf8
from eventmesh.cli.saga.common import (
    STATUSES,
    AsJson,
    Name,
    SagaId,
    age,
    opened,
    parent_of,
    summary,
    the_saga,
)
from eventmesh.duration import seconds
from eventmesh.errors import UsageError
from eventmesh.operations.saga_log import log_line
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from collections.abc import Iterator, Sequence

    from eventmesh.operations.sagas import SagaListing
    from eventmesh.persistence.sagas import SagaLot, SagaRow


def list_sagas(
    service: Name,
    status: Annotated[
        list[str] | None,
        typer.Option(help=f"Only sagas that are: {', '.join(STATUSES)}.", metavar="STATUS"),
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="Only sagas that wait for this step.", metavar="STEP")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Only sagas of this key.", metavar="KEY", callback=utf8)
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(help="Only sagas that began so long ago, such as 2h.", metavar="AGE"),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="List at most N, oldest first.", metavar="N")
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Count open sagas by what they wait for, and list the oldest.

    \b
    A saga is
      running    on its way forward
      undoing    undoing what was done, after a failure
      parked     waiting for an operator: see its reason, then use
                 `eventmesh saga retry`, `skip`, `undo` or `cancel`
      completed, undone or cancelled once it has ended

    \b
    Example:
      eventmesh saga list orders --status parked --older-than 1h
    """
    for each in status or ():
        if each not in STATUSES:
            raise UsageError(f"{each!r} is not a status: choose from {', '.join(STATUSES)}.")

    async def run() -> SagaListing:
        from datetime import timedelta

        from eventmesh.operations.sagas import list_sagas

        age = None if older_than is None else timedelta(seconds=seconds(older_than))
        async with reached(service) as (reach, loaded):
            return await list_sagas(
                reach,
                loaded,
                statuses=status or (),
                step=step,
                key=key,
                older_than=age,
                limit=limit,
            )

    listing = asyncio.run(run())
    lots, rows = listing.lots, listing.rows
    if as_json:
        shown = {"open": [_lot(each) for each in lots], "sagas": [summary(row) for row in rows]}
        typer.echo(json.dumps(shown, indent=2))
        return
    for line in _listing(lots, rows):
        typer.echo(printable(line))
    if not rows and not status and key is None:
        typer.echo("Sagas that have ended are listed by --status completed, undone or cancelled.")


def _lot(lot: SagaLot) -> dict[str, Any]:
    """Open sagas that wait for the same, for JSON."""
    return {
        "saga": lot.name,
        "version": lot.version,
        "status": lot.status,
        "waiting_for": [label for label in lot.waiting_for.split(",") if label],
        "count": lot.count,
        "oldest": lot.oldest.isoformat(),
        "overdue": lot.overdue,
    }


def _listing(lots: Sequence[SagaLot], rows: Sequence[SagaRow]) -> Iterator[str]:
    """The same for people, line by line."""
    for lot in lots:
        late = f", {lot.overdue:,} overdue" if lot.overdue else ""
        yield (
            f"{lot.name} v{lot.version}  {lot.status}  {lot.waiting_for or '-'}: "
            f"{lot.count:,}, the oldest for {age(lot.age)}{late}"
        )
    if lots and rows:
        yield ""
    for row in rows:
        began = "?" if row.started_at is None else f"{row.started_at:%Y-%m-%d %H:%M:%S}"
        words = [row.id, began, row.name, row.status, row.waiting_for or "-"]
        if row.key is not None:
            words.append(json.dumps(row.key, ensure_ascii=False))
        if row.reason:
            words.append(row.reason)
        yield "  ".join(words)
    yield f"{len(rows)} saga(s) listed, {sum(lot.count for lot in lots):,} open"


def show(service: Name, saga_id: SagaId, as_json: AsJson = False) -> None:
    """Show one saga: its state, its steps, and all that has happened to it."""

    async def run() -> tuple[SagaRow, list[tuple[datetime, Any]]]:
        from eventmesh.persistence import sagas

        async with opened(service) as (loaded, database):
            row = await the_saga(loaded, database, saga_id)
            async with database.reading() as connection:
                return row, await sagas.log_of(connection, row.name, row.id)

    row, log = asyncio.run(run())
    if as_json:
        whole = summary(row) | {
            "state": row.state,
            "steps": row.steps,
            "log": [{"at": at.isoformat(), **entry} for at, entry in log],
        }
        typer.echo(json.dumps(whole, indent=2))
        return
    typer.echo(printable(f"{row.name} v{row.version}  {row.id}"))
    typer.echo(printable(f"status: {row.status}" + (f" ({row.reason})" if row.reason else "")))
    if row.key is not None:
        typer.echo(printable(f"key: {row.key}"))
    if (parent := parent_of(row)) is not None:
        typer.echo(printable(f"child of: {parent['saga']} {parent['id']}, step {parent['step']}"))
    if row.waiting_for:
        until = "" if row.due_at is None else f", until {row.due_at:%Y-%m-%d %H:%M:%S}"
        typer.echo(printable(f"waits for: {row.waiting_for}{until}"))
    typer.echo(printable(f"state: {json.dumps(row.state, ensure_ascii=False)}"))
    for at, entry in log:
        typer.echo(printable(f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3] + "  " + log_line(entry)))


def graph(
    service: Name,
    saga: Annotated[
        str | None, typer.Argument(help="The saga, if the service has several.", metavar="SAGA")
    ] = None,
    counts: Annotated[
        bool, typer.Option("--counts", help="With the number of open sagas in each step.")
    ] = False,
) -> None:
    """Print a saga as a Mermaid flow chart, as GitHub and many editors draw it.

    \b
    Example:
      eventmesh saga graph orders --counts > fulfil_order.mmd
    """
    typer.echo(asyncio.run(_graph(service, saga, counts=counts)), nl=False)


async def _graph(service: str, saga: str | None, *, counts: bool) -> str:
    from pathlib import Path

    from eventmesh.persistence import sagas
    from eventmesh.runtime.declaring.discovery import load_services
    from eventmesh.saga.coordinator import coordinator_of
    from eventmesh.saga.graph import mermaid

    [loaded] = load_services([service], Path.cwd())
    definition = coordinator_of(loaded, saga).definition
    waiting: Counter[str] = Counter()
    if counts:
        async with opened(service) as (_, database), database.reading() as connection:
            for lot in await sagas.census(connection, definition.name):
                for label in lot.waiting_for.split(","):
                    waiting[label] += lot.count
    return mermaid(definition, waiting)
