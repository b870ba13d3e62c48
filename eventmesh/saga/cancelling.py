"""Ends a saga as it is, by an operator's decision.

Nothing is sent, and what waits for its delay is withdrawn, so this needs the row alone: it works
also for a saga whose state cannot be read, and for one that is not in the code any more.
"""

from __future__ import annotations

from eventmesh.persistence import sagas
from eventmesh.persistence.sagas import LogEntry
from eventmesh.persistence.transaction import Transaction
from eventmesh.saga.deciding import lock_decided
from eventmesh.saga.draft import Transition
from eventmesh.saga.happening import OperatorAction
from eventmesh.saga.signals import delayed_id, timer_id
from eventmesh.saga.storage import ended_row, unread_record_of
from eventmesh.saga.transition import cancel


async def cancel_saga(
    name: str, saga_id: str, action: OperatorAction, who: str, transaction: Transaction
) -> Transition:
    """Cancel the saga of this name and id, in this transaction. UnknownSaga; Conflict where it has
    changed since the operator saw it; UsageError where it has ended."""
    row = await lock_decided(name, saga_id, action, transaction)
    transition = cancel(unread_record_of(row))
    entry = {
        "rule": transition.rule,
        "status": transition.record.status,
        "operator": who,
        "why": action.reason,
    }
    await sagas.store(
        transaction.session,
        name,
        [ended_row(row, transition.record)],
        [LogEntry(saga_id, entry)],
        {timer_id(name, saga_id, label) for label in transition.cancelled},
        {delayed_id(name, saga_id, label) for label in transition.withdrawn},
    )
    return transition
