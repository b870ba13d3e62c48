"""Locks the saga on which an operator has decided, and refuses what was decided on an older state.

Minutes may pass between the moment in which people read what a saga waits for and the moment in
which they act. If `room` is answered meanwhile, the saga waits for `charge`, and a `skip` that was
meant for the room would take the card as charged. Likewise, a second `retry` would send a command
again that the first one has just sent. So a decision carries the version of the row that was read,
and it is compared under the lock, where nothing can change it any more.
"""

from __future__ import annotations

from eventmesh.errors import Conflict, UnknownSaga
from eventmesh.persistence import sagas
from eventmesh.persistence.sagas import SagaRow
from eventmesh.persistence.transaction import Transaction
from eventmesh.saga.happening import OperatorAction


async def lock_decided(
    name: str, saga_id: str, action: OperatorAction, transaction: Transaction
) -> SagaRow:
    """The row of this saga, locked until the transaction ends. UnknownSaga; Conflict where it has
    changed since the operator saw it."""
    rows = await sagas.lock(transaction.session, name, {saga_id})
    if not rows:
        raise UnknownSaga(f"no saga {saga_id} of {name} exists.")
    [row] = rows
    if action.row_version not in (None, row.row_version):
        waits = f", and waits for {row.waiting_for.replace(',', ', ')}" if row.waiting_for else ""
        raise Conflict(
            f"the saga has moved on since you looked at it, so that nothing was done: it is "
            f"{row.status} now{waits}. Look at it again, and decide on what you see then."
        )
    return row
