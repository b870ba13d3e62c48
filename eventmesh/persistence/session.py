"""The session that a handler gets: an ordinary AsyncSession, except that its end is not the
handler's to decide. Many messages may share its transaction, and the inbox is part of it."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from eventmesh.errors import UsageError
from eventmesh.persistence import ending
from eventmesh.persistence.dialects import mariadb

_STILL_GOOD = text("SELECT 1")
_GUARD = "eventmesh_guard"
"""Where a session keeps the guard of the one transaction that it has."""


class TransactionSession(AsyncSession):
    """Ended by EventMesh with `finish` and `end`; a handler's commit, rollback or close is refused.

    For a part that may fail, a handler uses `begin_nested()`; to undo everything, it raises.
    """

    sync_session_class = type("_Session", (Session,), {})

    async def commit(self) -> NoReturn:
        """UsageError: the transaction is not the caller's alone."""
        self._refuse("commit")

    async def rollback(self) -> NoReturn:
        """UsageError: the transaction is not the caller's alone."""
        self._refuse("rollback")

    async def close(self) -> NoReturn:
        """UsageError: the transaction is not the caller's alone."""
        self._refuse("close")

    async def reset(self) -> NoReturn:
        """UsageError: the transaction is not the caller's alone."""
        self._refuse("reset")

    async def invalidate(self) -> NoReturn:
        """UsageError: the transaction is not the caller's alone."""
        self._refuse("invalidate")

    async def finish(self, *, proved: bool) -> None:
        """Commit for good. Unless a statement has just `proved` it, ask first whether the
        transaction is still good: PostgreSQL answers COMMIT with a silent rollback after an error
        that a handler has swallowed, and MariaDB by committing what came after a deadlock."""
        if self.get_bind().dialect.name == mariadb.NAME:
            await mariadb.prove(self)
        elif not proved:
            await self.execute(_STILL_GOOD)
        if guard := self.sync_session.info.get(_GUARD):  # none where no statement was executed
            guard.finishing = True
        await super().commit()
        self.sync_session.info.pop(_GUARD, None)  # it may be read from

    async def end(self) -> None:
        """Close for good; what was not committed is rolled back. Raises nothing for a connection on
        which that fails: the database rolls back when it ends, and why the session ends tells more.
        """
        try:
            await asyncio.shield(super().close())
        except DBAPIError:
            await asyncio.shield(super().invalidate())

    def _refuse(self, what: str) -> NoReturn:
        raise UsageError(
            f"tx.session.{what}() is not a handler's to call: EventMesh ends the transaction when "
            f"the handler returns. Raise an error to undo it, or use `async with "
            f"tx.session.begin_nested():` for a part that may fail."
        )


@event.listens_for(TransactionSession.sync_session_class, "after_begin")
def _begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    if transaction.nested:
        return
    if _GUARD in session.info:
        raise ending.ended("ended the transaction and went on")
    session.info[_GUARD] = ending.Guard()
    ending.keep(connection, session.info[_GUARD])
    if connection.dialect.name == mariadb.NAME:
        mariadb.begin(connection)


@event.listens_for(TransactionSession.sync_session_class, "do_orm_execute")
def _lock_means_fresh(state: ORMExecuteState) -> None:
    """A row that is locked is read anew, though an earlier message of the group has loaded it:
    another process may have changed it in between."""
    statement: Any = state.statement
    if state.is_select and getattr(statement, "_for_update_arg", None) is not None:
        state.update_execution_options(populate_existing=True)
