"""The unit of work: one database transaction, with the messages that are to be sent if it commits.

A group of messages, `service.transaction()` and the saga coordinator change state, the inbox and
the outbox together or not at all, and this is where that is done:

    async with database.unit_of_work(sender) as unit:
        with unit.transaction([(message, envelope)]) as tx:  # each call of a handler
            await handler(message, tx)
        await unit.commit()

`commit` executes, in this order: what the ORM session still holds (a flush); with an ordered
outbox, the locks of the messages' keys; one INSERT with all messages, and their counters; where
none of these has shown it, a statement that proves the transaction intact; COMMIT. Then it wakes
the relays. Leaving without `commit` rolls back. Where nothing but messages came of the unit, and
the session has not been used, the INSERT is the whole transaction, on a database where that saves
round trips.

Handlers work with an ordinary AsyncSession, except that they cannot end its transaction, which
other messages may share. They are stopped at each of the ways to do so: methods of the session, its
plain session, its connection, the words COMMIT and ROLLBACK, and SQLite's constraints that roll
back everything.

A session that belongs to an application has its transaction ended by the application: see
`joined`, which shares `PendingMessages`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, Self

from sqlalchemy import Connection, Engine, ExceptionContext, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from eventmesh.contracts.message import Message
from eventmesh.errors import UsageError
from eventmesh.persistence import counts, outbox
from eventmesh.persistence.counts import Way
from eventmesh.persistence.database_errors import NO_RIGHT, connection_cut, connection_lost
from eventmesh.persistence.dialects.registry import dialect_of
from eventmesh.persistence.outbox import Outgoing, Stored
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.wire.envelope import Envelope

_GUARD = "eventmesh_guard"
"""Where a session and a connection keep the guard of their current transaction."""

_FAILED_ON = "eventmesh_failed_on"
"""Where an error keeps the dialect, which each engine has one of, whose statement failed."""


class UnitOfWork:
    """One transaction of a service's database: committed with `commit`, or rolled back on leaving.

    `session` is what handlers work with. The engine must be guarded with `guard`; `translated` is a
    context that turns the errors of a lost database, and those with some SQLSTATEs more, into
    Unreachable.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        sender: Sender,
        translated: Callable[[Collection[str]], AbstractContextManager[None]],
    ) -> None:
        self.session = TransactionSession(engine, expire_on_commit=False)
        self._engine = engine
        self._dialect = engine.sync_engine.dialect
        self._translated = translated
        self._sender = sender
        self._pending = PendingMessages()
        self._counted = Counter[Way]()
        self._is_proved = False
        """Whether a statement has succeeded since the last handler returned."""
        self.is_committing = False
        """Whether COMMIT may have been executed. An error since then leaves open whether it was."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the session; what was not committed is rolled back. Raises nothing where that
        fails: the database rolls back when the connection ends, and the error that led here tells
        more."""
        self.session.end()
        if not self.session.in_transaction():  # nothing to wait for, as after a commit
            self.session.sync_session.close()
            return
        try:
            await asyncio.shield(AsyncSession.close(self.session))
        except DBAPIError:
            await asyncio.shield(AsyncSession.invalidate(self.session))

    def transaction(
        self, causes: Sequence[tuple[Message, Envelope]] = ()
    ) -> AbstractContextManager[Transaction]:
        """What one call of a handler gets, with the messages that it is called with; it takes no
        more messages after the block."""
        self._is_proved = False
        return _UntilEnd(Transaction(self.session, self._sender, self._keep, causes))

    def is_lost(self, error: Exception) -> bool:
        """Whether this error of a handler says that the database of this unit is lost, and not
        another one that the handler uses."""
        if isinstance(error, DBAPIError):
            return connection_lost(error) and getattr(error, _FAILED_ON, None) is self._dialect
        found: _Guard | None = self.session.info.get(_GUARD)
        return connection_cut(error) and found is not None and found.is_cut

    async def flush(self) -> None:
        """Execute what the handlers have added to the session, which `commit` does otherwise.
        Unreachable."""
        if self._has_changes():
            with self._translated(()):
                await self.session.run_sync(self._flush)

    def count(self, numbers: Mapping[Way, int]) -> None:
        """Count these in the transaction, as one statement with the messages."""
        self._counted.update(numbers)

    async def commit(self) -> None:
        """Commit the changes and the messages, then wake the relays. Unreachable; Conflict or a
        DBAPIError when the database has undone the transaction, wholly or in part."""
        with self._translated(()):
            store = self._store_alone if self._only_publishes() else self._commit
            await self.session.run_sync(store)
        if self._pending.messages:
            self._sender.committed(self._pending.stored)

    def _only_publishes(self) -> bool:
        """Whether one statement is all there is to commit."""
        return (
            bool(self._pending.messages)
            and not self.session.in_transaction()
            and not self._has_changes()
            and not self._sender.ordered
            and dialect_of(self._engine.sync_engine).autocommit_saves_trips
        )

    def _has_changes(self) -> bool:
        """Whether the session holds what is still to be flushed."""
        session = self.session.sync_session
        return bool(session.new or session.dirty or session.deleted)

    def _store_alone(self, session: Session) -> None:
        with self._engine.sync_engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            self._store(session, connection, ordered=False)

    def _store(self, session: Session, connection: Connection, *, ordered: bool) -> bool:
        """See `PendingMessages.store`. A right that is missing for it is no error of a handler."""
        with self._translated((NO_RIGHT,)):
            return self._pending.store(session, connection, ordered=ordered, counted=self._counted)

    def _keep(self, message: Outgoing) -> None:
        session = self.session.sync_session
        if session.in_nested_transaction():
            self._pending.listen(session)
        self._pending.add(session, message)

    def _flush(self, session: Session) -> None:
        # An update may come to nothing, so that no statement is executed.
        executes = bool(session.new) or bool(session.deleted)
        session.flush()
        self._is_proved = self._is_proved or executes

    def _commit(self, session: Session) -> None:
        self._flush(session)
        connection = session.connection()
        if self._store(session, connection, ordered=self._sender.ordered):
            self._is_proved = True
        # After an error that a handler has swallowed, PostgreSQL answers COMMIT with a rollback, at
        # which our connection raises; but MariaDB, which may have begun another transaction by
        # itself, commits half.
        dialect_of(connection).prove(connection, is_proved=self._is_proved)
        session.info[_GUARD].is_committing = self.is_committing = True
        session.commit()
        del session.info[_GUARD]  # the session may still be read from


class _UntilEnd(AbstractContextManager[Transaction]):
    """A transaction that is ended on leaving."""

    __slots__ = ("_transaction",)

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction

    def __enter__(self) -> Transaction:
        return self._transaction

    def __exit__(self, *_: object) -> None:
        self._transaction.end()


class TransactionSession(AsyncSession):
    """An AsyncSession whose transaction only its unit of work can end.

    For a part that may fail, a handler uses `begin_nested()`; to undo everything, it raises.
    """

    sync_session_class = type("_Session", (Session,), {})

    def end(self) -> None:
        """Refuse to begin another transaction, which nobody would end."""
        self.sync_session.get_bind = _refuse_to_begin  # type: ignore[method-assign]

    async def commit(self) -> NoReturn:
        self._refuse("commit")

    async def rollback(self) -> NoReturn:
        self._refuse("rollback")

    async def close(self) -> NoReturn:
        self._refuse("close")

    async def reset(self) -> NoReturn:
        self._refuse("reset")

    async def invalidate(self) -> NoReturn:
        self._refuse("invalidate")

    def _refuse(self, method: str) -> NoReturn:
        raise UsageError(
            f"tx.session.{method}() cannot be called by a handler: EventMesh ends the transaction "
            f"when the handler returns. Raise an error to undo it, or use `async with "
            f"tx.session.begin_nested():` for a part that may fail."
        )


def _refuse_to_begin(*_: object, **_options: object) -> NoReturn:
    raise UsageError(
        "tx.session was used after its transaction had ended: await what uses it before the "
        "handler, or the block of service.transaction(), ends. A task that goes on needs a "
        "session of its own."
    )


class PendingMessages:
    """Messages that a session's transaction has published and not committed yet, in order.

    Those published in a savepoint that is rolled back are dropped with it. For each open savepoint
    we remember how many messages there were, and how many of them in the outbox, when the first one
    was published in it:

        publish A                           [A]
        begin_nested(), publish B, C        [A, B, C]    the savepoint remembers 1 message
        rollback of the savepoint           [A]
        publish D                           [A, D]
    """

    def __init__(self) -> None:
        # The session is passed to each method, not kept: it holds its listeners, and two objects
        # that hold each other are freed late.
        self.messages: list[Outgoing] = []
        self.stored: list[Stored] = []
        """Those of the messages, the first ones, that are in the outbox, uncommitted."""
        self._before: dict[SessionTransaction, tuple[int, int]] = {}
        self._released: SessionTransaction | None = None
        self._listens = False

    def listen(self, session: Session) -> None:
        """Follow the session's savepoints, which must be done before the first message in one."""
        if not self._listens:
            self._listens = True
            event.listen(session, "after_commit", self.after_commit)
            event.listen(session, "after_transaction_end", self.after_end)

    def add(self, session: Session, message: Outgoing) -> None:
        self._remember(session)
        self.messages.append(message)

    def store(
        self,
        session: Session,
        connection: Connection,
        *,
        ordered: bool,
        counted: Mapping[Way, int] = MappingProxyType({}),
    ) -> bool:
        """Insert what is not in the outbox yet, and count it with what else was `counted`; returns
        whether there was anything."""
        messages = self.messages[len(self.stored) :]
        if messages:
            self._remember(session)
            self.stored += outbox.store(connection, messages, ordered=ordered, counted=counted)
        elif counted:
            counts.add(connection, counted)
        return bool(messages) or bool(counted)

    def clear(self) -> None:
        self.messages.clear()
        self.stored.clear()

    def after_commit(self, session: Session) -> None:
        """The session, or its innermost savepoint, was committed."""
        self._released = session.get_nested_transaction()

    def after_end(self, _session: Session, transaction: SessionTransaction) -> None:
        """A savepoint has ended: by a release, by a rollback, or by a close without either."""
        before = self._before.pop(transaction, None)
        if transaction is self._released:
            self._released = None
        elif before is not None:
            messages, stored = before
            del self.messages[messages:]
            del self.stored[stored:]

    def _remember(self, session: Session) -> None:
        savepoint = session.get_nested_transaction()
        while savepoint is not None and savepoint not in self._before:
            if savepoint.nested:
                self._before[savepoint] = len(self.messages), len(self.stored)
            savepoint = savepoint.parent


@dataclass(slots=True)
class _Guard:
    """Of one transaction. `is_committing` while its unit of work commits it, `is_cut` once its
    connection was cut."""

    is_committing: bool = False
    is_cut: bool = False


@event.listens_for(TransactionSession.sync_session_class, "after_begin")
def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.nested:
        return
    if _GUARD in session.info:
        raise _misuse("ended the transaction and went on")
    session.info[_GUARD] = _Guard()
    connection.execution_options(**{_GUARD: session.info[_GUARD]})
    dialect_of(connection).after_begin(connection)


@event.listens_for(TransactionSession.sync_session_class, "do_orm_execute")
def _read_locked_rows_afresh(state: ORMExecuteState) -> None:
    """Read a row that is locked, though an earlier message of the group has loaded it: another
    process may have changed it in between."""
    statement: Any = state.statement
    if state.is_select and getattr(statement, "_for_update_arg", None) is not None:
        state.update_execution_options(populate_existing=True)


def guard(engine: Engine) -> None:
    """Let nobody but its unit of work end a transaction of ours on this engine. Called before the
    engine is used: to add a listener while an event is in progress would be an error."""
    event.listen(engine, "commit", _refuse_commit)
    event.listen(engine, "begin", _refuse_another)
    event.listen(engine, "before_cursor_execute", _refuse_statement)
    event.listen(engine, "handle_error", _note_whose_error)


def _guard_of(connection: Connection) -> _Guard | None:
    found: _Guard | None = connection.get_execution_options().get(_GUARD)
    return found


def _note_whose_error(context: ExceptionContext) -> None:
    if context.sqlalchemy_exception is not None:
        setattr(context.sqlalchemy_exception, _FAILED_ON, context.dialect)
    found = None if context.connection is None else _guard_of(context.connection)
    if found is not None and context.is_disconnect:
        found.is_cut = True


def _refuse_commit(connection: Connection) -> None:
    found = _guard_of(connection)
    if found is not None and not found.is_committing:
        # SQLAlchemy now believes the transaction ended, and would lend the connection to others
        # with it still open.
        connection.dialect.do_rollback(connection.connection)
        raise _misuse("committed the transaction")


def _refuse_another(connection: Connection) -> None:
    if _guard_of(connection) is not None:
        raise _misuse("ended the transaction and went on")


def _refuse_statement(
    connection: Connection, _cursor: object, statement: str, *_rest: object
) -> None:
    if _guard_of(connection) is None:
        return
    dialect = dialect_of(connection)
    if dialect.ends_transaction.match(statement):
        raise _misuse(
            f"executed {' '.join(statement.split()[:3])!r}, which ends the transaction. Do that "
            f"outside handlers"
        )
    dialect.require_open(connection)


def _misuse(what: str) -> UsageError:
    return UsageError(
        f"a handler {what}: EventMesh ends the transaction when the handler returns, as other "
        f"messages may share it. Raise an error to undo it, or use `async with "
        f"tx.session.begin_nested():` for a part that may fail."
    )
