"""`eventmesh saga retry`, `skip`, `undo` and `cancel`: an operator's decisions.

Each is a transition of the saga like any other, committed with what it sends, and recorded in the
saga's log with who did it and why.
"""

from __future__ import annotations

import asyncio
import getpass
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.saga.common import Name, SagaId, opened, the_saga
from eventmesh.errors import UsageError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.saga.happening import Operation

Reason = Annotated[
    str, typer.Option("--reason", help="Why; it is kept in the saga's log.", metavar="TEXT")
]
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
    _check(reason)
    if (saga_id is None) is not parked:
        raise UsageError("Name a saga, or give --parked: exactly one of these.")
    if parked:
        _act_on_parked(service, reason)
    else:
        _act(service, saga_id or "", "retry", reason, step)


def skip(service: Name, saga_id: SagaId, reason: Reason, step: Step = None) -> None:
    """Go on as if the step that a saga waits for had been done, or undone.

    For what was settled by hand: say so in the reason.
    """
    _check(reason)
    _act(service, saga_id, "skip", reason, step)


def undo(service: Name, saga_id: SagaId, reason: Reason) -> None:
    """Undo what a saga has done, in reverse order; possible until its pivot is done."""
    _check(reason)
    _act(service, saga_id, "undo", reason, None)


def cancel(service: Name, saga_id: SagaId, reason: Reason) -> None:
    """End a saga as it is: nothing more is sent, and nothing is undone."""
    _check(reason)
    _act(service, saga_id, "cancel", reason, None)


def _check(reason: str) -> None:
    """UsageError for a reason that says nothing."""
    if not reason.strip():
        raise UsageError('Say why, for whoever reads the saga\'s log: --reason "the bank is back".')


def _act(service: str, saga_id: str, operation: Operation, reason: str, step: str | None) -> None:
    async def run() -> str:
        from eventmesh.operations.sagas import operate
        from eventmesh.saga.happening import OperatorAction

        async with opened(service) as (loaded, database):
            row = await the_saga(loaded, database, saga_id)
            action = OperatorAction(operation, reason, step)
            record = await operate(database, loaded, row, action, _who())
            waiting = ", ".join(record.waiting)
            return f"{row.id}: {record.status}" + (f", waits for {waiting}" if waiting else "")

    typer.echo(printable(asyncio.run(run())))


def _act_on_parked(service: str, reason: str) -> None:
    async def parked() -> list[str]:
        from eventmesh.persistence import sagas

        async with opened(service) as (loaded, database), database.reading() as connection:
            found = await sagas.find(
                connection, names=tuple(loaded.sagas), statuses=("parked",), most=1_000_000
            )
            return [row.id for row in found]

    ids = asyncio.run(parked())
    for saga_id in ids:
        _act(service, saga_id, "retry", reason, None)
    typer.echo(f"{len(ids)} saga(s) retried")


def _who() -> str:
    """The operator, as their machine knows them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "unknown"
