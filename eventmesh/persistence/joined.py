"""Publishing with a session of the application's own: messages are committed with its transaction,
or not at all.

The application ends the transaction, in whatever way, so everything hangs on the session's events.
Before the outermost commit the messages are inserted into the outbox; after it, relays are woken.
Messages of a savepoint that is rolled back are dropped (see `PendingMessages`). A session may be
joined by several services that share a database, and again in each of its transactions:

    service.join(session)     the session's transaction 0
    tx.publish(event)         begins it if need be; the message is pending
    session.commit()          before_commit: INSERT into the outbox; after_commit: wake the relays
    tx.publish(event)         an error: transaction 0 has ended
    service.join(session)     transaction 1

An application may also join in a listener of its own, such as a hook that collects domain events
while a session is committed. SQLAlchemy no longer calls what we add to the session then, so each
commit of any session is noted (`note_commits`), and messages are inserted as they are published.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import cast

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, SessionTransaction, scoped_session

from eventmesh.errors import Drift, UsageError
from eventmesh.persistence.database_url import parse_url, shown
from eventmesh.persistence.dialects.base import JoinedProof
from eventmesh.persistence.dialects.registry import NO_TABLE, dialect_named, dialect_of, sqlstate
from eventmesh.persistence.outbox import Outgoing
from eventmesh.persistence.tables import count
from eventmesh.persistence.tables import outbox as table
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.persistence.unit_of_work import PendingMessages, TransactionSession

AnySession = AsyncSession | Session | async_scoped_session[AsyncSession] | scoped_session[Session]
"""The sessions an application may have; plain ones in code that runs in threads."""


@cache  # once in a process
def note_commits() -> None:
    """Note on every session whether it is being committed, as `join` has to know. Called before a
    commit begins: to add a listener while the event is in progress would be an error."""
    event.listen(Session, "before_commit", _note_commit, insert=True)  # before the application's
    event.listen(Session, "after_transaction_end", _note_end, insert=True)


def _note_commit(session: Session) -> None:
    transaction = session.get_nested_transaction() or session.get_transaction()
    session.info.setdefault(_COMMITS, set()).add(transaction)


def _note_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_COMMITS, None)
    elif transaction.nested and _COMMITS in session.info:
        session.info[_COMMITS].discard(transaction)


def join(session: AnySession, sender: Sender, url: str) -> Transaction:
    """A Transaction of a service whose database is at `url`, committed and rolled back with the
    session. Publishing begins the session's transaction as `session.add` does. Once that has ended,
    in whatever way, nothing more can be published with it.

    UsageError for the session of another database, and for what is not a session.
    """
    plain = _plain(session, sender.service)
    if isinstance(session, TransactionSession):
        raise UsageError(
            f"This session is EventMesh's own, and service {sender.service!r} joins only those of "
            f"an application. Use the Transaction that the session came with."
        )
    joints = plain.info.setdefault(_JOINTS, {})
    joint = joints.get(sender.service)
    if joint is None:
        _refuse_elsewhere(plain, sender.service, url)
        if _PROOF not in plain.info:
            dialect = dialect_of(plain.get_bind(clause=table))
            plain.info[_PROOF] = dialect.watch_joined(plain, table)
        joint = joints[sender.service] = _Joint(plain, sender, plain.info[_PROOF])
    joint.proof.want()
    keep = partial(joint.keep, plain, joint.ended)
    return Transaction(cast(AsyncSession, session), sender, keep)


class _Joint:
    """What one session has published for one service, from transaction to transaction."""

    def __init__(self, session: Session, sender: Sender, proof: JoinedProof) -> None:
        self.proof = proof
        self.ended = 0
        """How many transactions of the session have ended."""
        self._sender = sender
        self._pending = PendingMessages()
        self._committing: SessionTransaction | None = None
        """The savepoint that is being released, or is about to be."""
        self._is_closing = False
        """Whether the outermost transaction is being committed, and all were stored."""
        self._is_late = bool(session.info.get(_COMMITS))
        """Whether a commit had begun when the session was joined, and is still in progress."""
        # Not at the first message: that may be published by a listener of the same event.
        if not self._is_late:
            event.listen(session, "before_commit", self._before_commit)
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_transaction_end", self._after_end)

    def keep(self, session: Session, number: int, message: Outgoing) -> None:
        """Take a message that is published in the transaction of this number."""
        if number != self.ended:
            raise UsageError(
                f"{message.envelope.name} was published with a transaction that has ended, by a "
                f"commit, a rollback or a close of its session. Join the session again, with "
                f"service.join(session), for each of its transactions."
            )
        if not session.in_transaction():
            if not session.autobegin:
                raise UsageError(
                    f"{message.envelope.name} was published with a session that has "
                    f"autobegin=False, and is in no transaction: publish within "
                    f"`with session.begin():`."
                )
            session.begin()
        self._pending.add(session, message)
        if self._is_closing or self._is_late:  # by a listener of the commit that runs after ours
            self._store(session)

    def _before_commit(self, session: Session) -> None:
        savepoint = session.get_nested_transaction()
        if savepoint is not None and savepoint is not self._committing:
            # This is its release, we assume. If instead an outer transaction is committed while the
            # savepoint is open, we are called a second time, for the savepoint itself.
            self._committing = savepoint
            return
        session.flush()  # where listeners of the application may publish
        self._store(session)
        self._is_closing = savepoint is None

    def _store(self, session: Session) -> None:
        if len(self._pending.stored) == len(self._pending.messages):
            return
        service = self._sender.service
        connection = session.connection(bind_arguments={"clause": table})
        _refuse_autocommit(connection, service)
        try:
            self._pending.store(session, connection, ordered=self._sender.ordered)
        except DBAPIError as error:
            if sqlstate(error) != NO_TABLE or not _is_ours(str(error.orig)):
                raise
            raise Drift(
                f"The database of service {service!r} has no EventMesh tables. Run "
                f"`eventmesh db upgrade {service}`."
            ) from error
        self.proof.arm()

    def _after_commit(self, session: Session) -> None:
        pending = self._pending
        pending.after_commit(session)
        if pending.stored:
            self._sender.committed(())  # as far as the session knows
        if len(pending.messages) > len(pending.stored) and not session.in_nested_transaction():
            raise UsageError(
                f"Messages of service {self._sender.service!r} were published while their session "
                f"was being committed, after the last moment to store them. The commit succeeded, "
                f"but they are lost. Publish them before the commit."
            )

    def _after_end(self, session: Session, transaction: SessionTransaction) -> None:
        self._pending.after_end(session, transaction)
        if transaction is self._committing:
            self._committing = None
        if transaction.parent is None:
            self._pending.clear()
            self._is_closing = False
            self.ended += 1
        if self._is_late and not session.info.get(_COMMITS):
            self._is_late = False
            event.listen(session, "before_commit", self._before_commit)


_JOINTS = "eventmesh_joints"
"""Where a session has its joints, by service."""
_COMMITS = "eventmesh_commits"
"""Where a session has those of its transactions that are being committed: its own, and savepoints
in it."""
_PROOF = "eventmesh_proof"
"""Where a session has the proof of its transactions, for all services."""


def _plain(session: AnySession, service: str) -> Session:
    """The session that does the work."""
    made = session() if isinstance(session, async_scoped_session | scoped_session) else session
    if isinstance(made, AsyncSession):
        return made.sync_session
    if isinstance(made, Session):
        return made
    raise UsageError(
        f"Service {service!r} cannot join {type(made).__name__}: it joins a session of SQLAlchemy, "
        f"such as `async with sessions() as session:` gives, where sessions is an "
        f"async_sessionmaker."
    )


def _refuse_elsewhere(session: Session, service: str, url: str) -> None:
    """UsageError when the session surely writes into another database than the service's."""
    try:
        bind = session.get_bind(clause=table)
    except UnboundExecutionError:
        raise UsageError(
            f"Service {service!r} cannot join this session: it has no engine for "
            f"EventMesh's tables. Give async_sessionmaker the engine of the service's database."
        ) from None
    ours, theirs = parse_url(url, service), bind.engine.url
    if _differ(ours, theirs):
        raise UsageError(
            f"Service {service!r} cannot join this session: the session is bound to "
            f"{shown(theirs)}, and the service's database is "
            f"{shown(ours)}. Bind it to that, or correct "
            f"EVENTMESH_{service.upper()}_DATABASE_URL."
        )


def _is_ours(error: str) -> bool:
    """Whether the table that is missing, by this error, is one that publishing needs."""
    return table.name in error or count.name in error


@lru_cache(maxsize=64)
def _differ(ours: URL, theirs: URL) -> bool:
    """Whether these are two databases for sure. One server may have many names."""
    dialect, other = (dialect_named(url.get_backend_name()) for url in (ours, theirs))
    return dialect is not other or dialect is None or dialect.differ(ours, theirs)


def _refuse_autocommit(connection: Connection, service: str) -> None:
    """UsageError where each statement is a transaction of its own."""
    if dialect_of(connection).commits_each_statement(connection):
        raise UsageError(
            f"Service {service!r} cannot publish with a session whose isolation level is "
            f"AUTOCOMMIT: state and messages would not be committed together."
        )
