"""`eventmesh saga retry`, `skip`, `undo` and `cancel`: an operator's decisions.

Each is a transition of the saga like any other, committed with what it sends, and recorded in the
saga's log, and in the log of actions, with who did it and why.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.actions import Reason, check_reason, reached
from eventmesh.cli.saga.common import Name, SagaId, the_saga
from eventmesh.errors import Conflict, UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.operations.reach import Reach
    from eventmesh.persistence.sagas import SagaRow
    from eventmesh.runtime.declaring.service import DeclaredService as Service
    from eventmesh.saga.happening import Operation

Step = Annotated[
    str | None,
    typer.Option("--step", help="Which step, where the saga waits for several.", metavar="STEP"),
]


def retry(
    service: Name,
    reason: Reason,
    saga_id: Annotated[
        str | None, typer.Argument(help="Id of the saga, or its beginning.", metavar="ID")
    ] = None,
    step: Step = None,
    parked: Annotated[
        bool, typer.Option("--parked", help="All parked sagas of the service.")
    ] = False,
) -> None:
    """Send again what a saga waits for; let a parked one go on.

    A saga that was parked by an error of its code applies what has come
    meanwhile: correct the code and deploy it first.

    \b
    Example:
      eventmesh saga retry orders 01a2 --reason "the bank is back"
    """
    check_reason(reason)
    if (saga_id is None) is not parked:
        raise UsageError("Name a saga, or give --parked: exactly one of these.")
    if parked:
        _act_on_parked(service, reason)
    else:
        _act(service, saga_id or "", "retry", reason, step)


def skip(service: Name, saga_id: SagaId, reason: Reason, step: Step = None) -> None:
    """Go on as if the step that a saga waits for had been done, or undone.

    For what was settled by hand: say so in the reason. With --step, nothing
    is skipped if the saga has moved on to another step since you looked.
    """
    check_reason(reason)
    _act(service, saga_id, "skip", reason, step)


def undo(service: Name, saga_id: SagaId, reason: Reason) -> None:
    """Undo what a saga has done, in reverse order; possible until its pivot is done."""
    check_reason(reason)
    _act(service, saga_id, "undo", reason, None)


def cancel(service: Name, saga_id: SagaId, reason: Reason) -> None:
    """End a saga as it is: nothing more is sent, and nothing is undone."""
    check_reason(reason)
    _act(service, saga_id, "cancel", reason, None)


def _act(service: str, saga_id: str, operation: Operation, reason: str, step: str | None) -> None:
    async def run() -> str:
        from eventmesh.operations.sagas import place_of_sagas

        async with reached(service) as (reach, loaded):
            async with reach.database(place_of_sagas(reach, loaded)) as database:
                row = await the_saga(loaded, database, saga_id)
            return await _operate(reach, loaded, row, operation, reason, step)

    typer.echo(printable(asyncio.run(run())))


def _act_on_parked(service: str, reason: str) -> None:
    async def run() -> tuple[int, int]:
        from eventmesh.operations.sagas import list_sagas

        async with reached(service) as (reach, loaded):
            listing = await list_sagas(reach, loaded, statuses=("parked",), limit=1_000_000)
            parked = listing.rows
            retried = 0
            for row in parked:
                try:
                    said = await _operate(reach, loaded, row, "retry", reason, None)
                except (UsageError, Conflict) as error:  # the others can go on
                    typer.echo(printable(f"{row.id}: not retried: {error}"), err=True)
                    continue
                retried += 1
                typer.echo(printable(said))
            return retried, len(parked) - retried

    retried, refused = asyncio.run(run())
    typer.echo(f"{retried} saga(s) retried")
    if refused:
        raise UsageError(f"{refused} parked saga(s) could not be retried, for the reasons above.")


async def _operate(
    reach: Reach,
    service: Service,
    row: SagaRow,
    operation: Operation,
    reason: str,
    step: str | None,
) -> str:
    """Do it; returns what has become of the saga. Conflict where the row says what is retried or
    skipped, and has changed."""
    from eventmesh.operations.action_log import operator_of_machine
    from eventmesh.operations.sagas import operate
    from eventmesh.saga.happening import OperatorAction

    # An undo and a cancellation mean the same wherever the saga is, and a named step is compared
    # with what waits. They must not fail for a saga that changes many times a second.
    seen = row.row_version if step is None and operation in ("retry", "skip") else None
    decision = OperatorAction(operation, reason, step, seen)
    transition = await operate(reach, service, row, decision, operator_of_machine())
    record = transition.record
    said = f"{row.id}: {record.status}"
    if record.status == "parked":
        said += f" ({record.reason})"
    if operation == "skip" and transition.taken_for is not None:
        said += f", skipped {transition.taken_for}"
    if record.waiting:
        said += f", waits for {', '.join(record.waiting)}"
    return said
