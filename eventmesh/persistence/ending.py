"""A transaction that many messages share is ended by EventMesh, and by nobody else in between: with
it would end what keeps the inbox and their effects together.

A session's methods are not the only way to end it. There are its plain session, its connection, the
words COMMIT and ROLLBACK, and on SQLite constraints that roll back everything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, event

from eventmesh.errors import Conflict, UsageError
from eventmesh.persistence.dialects import mariadb

_GUARD = "eventmesh_guard"
_ENDS = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n)*"
    r"(?:COMMIT|END|ABORT|BEGIN|START|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO)"
    r"|PREPARE\s+TRANSACTION)\b",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(slots=True)
class Guard:
    """Of one transaction. `finishing`: it is EventMesh that commits now."""

    finishing: bool = False


def keep(connection: Connection, guard: Guard) -> None:
    """Guard the transaction that has just begun on a connection of its own."""
    connection.execution_options(**{_GUARD: guard})


def watch(engine: Engine) -> None:
    """Look after the transactions of this engine that are guarded."""
    event.listen(engine, "commit", _refuse_commit)
    event.listen(engine, "begin", refuse_another)
    event.listen(engine, "before_cursor_execute", _refuse_statement)


def refuse_another(connection: Connection) -> None:
    """UsageError on a connection whose guarded transaction was ended."""
    if _guard_of(connection) is not None:
        raise ended("ended the transaction and went on")


def ended(what: str) -> UsageError:
    """The error for a handler that did so."""
    return UsageError(
        f"a handler {what}, which is not a handler's to do: EventMesh ends the transaction when "
        f"the handler returns, as other messages may share it. Raise an error to undo it, or use "
        f"`async with tx.session.begin_nested():` for a part that may fail."
    )


def _guard_of(connection: Connection) -> Guard | None:
    guard: Guard | None = connection.get_execution_options().get(_GUARD)
    return guard


def _refuse_commit(connection: Connection) -> None:
    guard = _guard_of(connection)
    if guard is not None and not guard.finishing:
        # SQLAlchemy takes the transaction for ended, and would lend it to others, open as it is.
        connection.dialect.do_rollback(connection.connection)
        raise ended("committed the transaction")


def _refuse_statement(
    connection: Connection, _cursor: object, statement: str, *_rest: object
) -> None:
    if _guard_of(connection) is None or connection.dialect.name == mariadb.NAME:
        return  # MariaDB has more such statements, and looks for them itself
    if _ENDS.match(statement):
        raise ended(f"executed {' '.join(statement.split()[:2])!r}")
    if connection.dialect.name == "sqlite":
        raw: Any = connection.connection.driver_connection
        if not raw.in_transaction:
            raise Conflict(
                "SQLite rolled back the whole transaction, at an error that the handler caught: by "
                "a constraint that says ON CONFLICT ROLLBACK, or a trigger"
            )
