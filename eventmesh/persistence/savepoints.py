"""A savepoint that is not released takes with it what was published in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

State = TypeVar("State")


class Savepoints(Generic[State]):
    """Calls `restore` when a savepoint of a session ends without being released, with the state
    that was noted first in it. To be told of the session's events."""

    def __init__(self, restore: Callable[[State], None]) -> None:
        # No session is kept: it holds its listeners, and two that hold each other are freed late.
        self._restore = restore
        self._noted: dict[SessionTransaction, State] = {}
        self._released: SessionTransaction | None = None

    def listen(self, session: Session) -> None:
        """Be told of them."""
        event.listen(session, "after_commit", self.after_commit)
        event.listen(session, "after_transaction_end", self.after_end)

    def note(self, session: Session, state: State) -> None:
        """To be called before each change: the open savepoints go back to this state, unless they
        have an earlier one."""
        savepoint = session.get_nested_transaction()
        while savepoint is not None and savepoint not in self._noted:
            if savepoint.nested:
                self._noted[savepoint] = state
            savepoint = savepoint.parent

    def after_commit(self, session: Session) -> None:
        """Of the session, or of its innermost savepoint."""
        self._released = session.get_nested_transaction()

    def after_end(self, _session: Session, transaction: SessionTransaction) -> None:
        """However it ends: by a rollback, or by a close without one."""
        state = self._noted.pop(transaction, None)
        if state is not None and transaction is not self._released:
            self._restore(state)
        if transaction is self._released:
            self._released = None
