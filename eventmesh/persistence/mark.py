"""Whether the transaction of an application's session is still the one in which it published."""

from __future__ import annotations

from sqlalchemy import Connection, event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from eventmesh.persistence.dialects import mariadb
from eventmesh.persistence.tables import outbox

_KINDS = (mariadb.NAME, "mysql")  # the second is what applications often call it


class Mark:
    """MariaDB undoes all of a transaction at a deadlock, and goes on in a new one when the
    application has swallowed the error: half of its state would be committed, and all messages.

    So a transaction is marked when it begins, or before its next statement where it has begun
    already, and proved right before it is committed. Of other databases nothing is asked, as they
    do no such thing.
    """

    def __init__(self, session: Session) -> None:
        # No session is kept, see Savepoints.
        self._wanted = self._armed = False
        self._marked: Connection | None = None
        if session.get_bind(clause=outbox).dialect.name in _KINDS:
            event.listen(session, "after_begin", self._after_begin)
            event.listen(session, "do_orm_execute", self._before_statement)
            event.listen(session, "before_flush", self._before_flush)
            event.listen(session, "after_transaction_end", self._after_end)

    def want(self) -> None:
        """Mark the transaction that the session is in, or begins next."""
        self._wanted = True

    def arm(self) -> None:
        """Let its commit be refused with Conflict unless it is still the same."""
        self._armed = True

    def _after_begin(
        self, _session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        if not transaction.nested and connection.dialect.name in _KINDS:
            self._mark(connection)

    def _before_statement(self, state: ORMExecuteState) -> None:
        self._catch_up(state.session)

    def _before_flush(self, session: Session, *_: object) -> None:
        self._catch_up(session)

    def _catch_up(self, session: Session) -> None:
        # A mark in a savepoint would be gone with that.
        if self._wanted and self._marked is None and not session.in_nested_transaction():
            self._mark(session.connection(bind_arguments={"clause": outbox}))

    def _mark(self, connection: Connection) -> None:
        if self._wanted and self._marked is None:
            mariadb.mark(connection)
            self._marked = connection
            # Not the session's: with a savepoint open, that comes before the savepoint's end.
            event.listen(connection, "commit", self._before_commit)

    def _before_commit(self, connection: Connection) -> None:
        if self._armed:
            try:
                mariadb.prove_marked(connection)
            except BaseException:
                # SQLAlchemy takes a commit that failed for an end, and would hand the connection,
                # with its transaction open, to somebody who commits.
                connection.invalidate()
                raise

    def _after_end(self, _session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        if self._marked is not None:
            event.remove(self._marked, "commit", self._before_commit)
        self._wanted, self._armed, self._marked = False, False, None
