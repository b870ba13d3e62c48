"""What differs between PostgreSQL, MariaDB and SQLite, as one interface.

The rest of EventMesh asks a dialect what it can do, or lets it do it, and never compares its name:
`dialect_of(connection).insert_absent(table)`. What is written here is what SQLite does, or all of
them; the others override what is different there.
"""

# ruff: noqa: B027  # most dialects have nothing to do where others have

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

from sqlalchemy import (
    Connection,
    Executable,
    FromClause,
    Insert,
    Table,
    bindparam,
    delete,
    insert,
    text,
)
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import Session

from eventmesh.persistence.dialects.sql import database_now

Parameters = dict[str, Any] | list[dict[str, Any]]

_STILL_GOOD = text("SELECT 1")


class Dialect(ABC):
    """One kind of database. There is one object of each, without state."""

    name: ClassVar[str]
    """SQLAlchemy's name for it."""
    driver: ClassVar[str]
    """The scheme of a URL, with the driver that EventMesh uses."""
    is_file = False
    """Whether a database is a file, which EventMesh makes and migrates by itself."""
    can_notify = False
    """Whether processes can wake each other through the database."""
    can_order_keys = True
    """Whether row numbers of a key can be made to follow the order of commits."""
    adds_delays = False
    """Whether a statement that inserts into the outbox adds delays to the time by itself, so that
    the database need not be asked for its time before."""
    autocommit_saves_trips = False
    """Whether a statement that is a transaction by itself is executed without a BEGIN and a
    COMMIT, each of which would be a round trip to the server."""
    counts_with_insert = False
    """Whether the statement that inserts into the outbox also counts, given the columns of what to
    count as lists and the `count_owner`."""
    counts_with_claim = False
    """Whether the statement that claims messages also counts those that were not there, given the
    `count_owner`; `way_source` and `way_name` are what to count, and `count_way` says for each
    `message_id` which of these it is, counted from 1."""
    can_cancel_delayed = True
    """Whether a delayed message in the outbox is found by its id without reading others."""
    reading_options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"isolation_level": "AUTOCOMMIT"}
    )
    """Of a connection, such that single reads take no lock that a writer has to wait for."""
    maintenance_database: ClassVar[str] = ""
    """What to connect to on a server before the service's own database is there."""
    queue_settings: ClassVar[Executable | None] = None
    """Executed first in a transaction that reads or deletes the rows of a work queue, unless its
    connection `keeps_queue_settings`."""
    ends_transaction: ClassVar[re.Pattern[str]] = re.compile(
        r"(?:\s|/\*.*?\*/|--[^\n]*\n)*"
        r"(?:COMMIT|END|ABORT|BEGIN|START|ROLLBACK(?!\s+(?:(?:WORK|TRANSACTION)\s+)?TO)"
        r"|PREPARE\s+TRANSACTION)\b",
        re.IGNORECASE | re.DOTALL,
    )
    """Matches a statement that ends the transaction it is executed in."""

    # URLs and errors

    def normal_url(self, url: URL, variable: str) -> URL:
        """The URL with its parts where SQLAlchemy expects them; UsageError, which names the
        `variable` that it is in, for parameters that are not understood."""
        return url

    @abstractmethod
    def differ(self, ours: URL, theirs: URL) -> bool:
        """Whether these are surely two databases. One server may have many names."""

    def stored_name(self, name: str) -> str:
        """A table's or column's name as the database compares it."""
        return name.casefold()

    @abstractmethod
    def sqlstate(self, error: BaseException | None) -> str:
        """PostgreSQL's SQLSTATE for what this driver's error says; empty where it is not known."""

    def is_about_driver(self, error: BaseException | None) -> bool:
        """Whether what this driver says of a lost connection is about its own inner state only, so
        that it tells nobody what happened."""
        return False

    # Engines and connections

    @abstractmethod
    def make_engine(
        self, url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
    ) -> AsyncEngine:
        """An engine with SQLAlchemy's `options`; UsageError for a URL that cannot be used."""

    def make_queue_engine(
        self, url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
    ) -> AsyncEngine | None:
        """As `make_engine`, for the rows of work queues only; None where that makes no
        difference."""
        return None

    def keeps_queue_settings(self, connection: Connection) -> bool:
        """Whether this connection of a queue engine has the `queue_settings` by itself."""
        return False

    async def check_server(self, connection: AsyncConnection, largest: int) -> None:
        """UsageError for a server on which EventMesh cannot keep its promises, or that does not
        accept messages of `largest` bytes."""

    def commits_each_statement(self, connection: Connection) -> bool:
        """Whether an application's connection has each statement in a transaction of its own."""
        with suppress(NotImplementedError):  # not every driver knows
            raw: Any = connection.connection.dbapi_connection
            return connection.dialect.detect_autocommit_setting(raw)
        return False

    # Transactions

    def after_begin(self, connection: Connection) -> None:
        """The transaction of a unit of work has begun."""

    def require_open(self, connection: Connection) -> None:
        """Conflict where the database has ended the transaction by itself."""

    def prove(self, connection: Connection, *, is_proved: bool) -> None:
        """Raise unless what a unit of work did is still there to be committed. `is_proved`: a
        statement has succeeded after all that handlers did."""
        if not is_proved:
            connection.execute(_STILL_GOOD)

    def watch_joined(self, session: Session, clause: FromClause) -> JoinedProof:
        """What proves the transactions of an application's session, `clause` being of the database
        that matters."""
        return JoinedProof()

    # Migration

    @asynccontextmanager
    async def migration_lock(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """Have one process at a time in the block, for each database."""
        yield

    async def create_database(self, connection: AsyncConnection, name: str) -> None:
        """Make a database, if it is not there, on the server of this `maintenance` connection."""

    # Statements

    @abstractmethod
    def insert_absent(self, table: Table) -> Insert:
        """Insert the rows that are not there; what it returns is of these only. An uncommitted row
        of another transaction is waited for."""

    @abstractmethod
    def upsert(
        self, table: Table, keys: Sequence[str], first: Mapping[str, Any], again: Mapping[str, Any]
    ) -> Insert:
        """Insert a row with the values `first`, or update that with the same keys by `again`."""

    def claim(
        self, inbox: Table, subscription: str, columns: Mapping[str, Sequence[Any]]
    ) -> tuple[Executable, Parameters]:
        """Enter messages, given column by column, into the inbox in this order; returns ids of
        those that were not there."""
        rows = [
            {"subscription": subscription, **dict(zip(columns, row, strict=True))}
            for row in zip(*columns.values(), strict=True)
        ]
        return _claim(self, inbox), rows

    def insert_outbox(
        self, outbox: Table, rows: list[dict[str, Any]]
    ) -> tuple[Executable, Parameters]:
        """Insert rows into the outbox, numbered in this order, and return the numbers. Where
        `adds_delays`, a row with a `delay` in seconds is due so much later than now."""
        return _insert_outbox(outbox), [
            {name: value for name, value in row.items() if name != "delay"} for row in rows
        ]

    def lock_sagas(self, saga: Table, columns: Sequence[str]) -> Executable | None:
        """These columns of the sagas of a `saga_name` with these `ids`, and of its open ones with
        these `keys`, locked in the order of their ids. None where lists are written into a
        statement one by one, so that it is better to have two."""
        return None

    def store_sagas(
        self,
        name: str,
        rows: list[dict[str, Any]],
        log: list[dict[str, Any]],
        cancelled: list[str],
    ) -> tuple[Executable, Parameters] | None:
        """All that a group has changed in the sagas of a name, as one statement: `rows` to insert,
        if of row version 1, and otherwise to update; entries of the log; and the ids of delayed
        messages to delete. None where it takes several statements."""
        return None

    def lock_keys(self, connection: Connection, numbers: Sequence[int]) -> None:
        """Lock these keys of the outbox, by numbers, until the transaction ends; where there are
        several writers."""

    def delete_relayed(self, outbox: Table) -> Executable | None:
        """Delete rows of these `seqs` which have had so many `attempts`, and count them as relayed
        for this `owner`; returns how many there were. None where that takes two statements."""
        return None

    def delete_outbox(self, outbox: Table) -> Executable:
        """Delete rows of these `seqs` which have had so many `attempts`; returns the numbers of
        those that there were."""
        return _delete_outbox(outbox)

    def outbox_writers(self, connection: Connection) -> list[str]:
        """Names of the open transactions which may have put rows into the outbox."""
        return []


class JoinedProof:
    """Proves that an application's transaction is still the one in which it published. Where the
    database never exchanges a transaction for another one, there is nothing to do."""

    def want(self) -> None:
        """Watch the transaction that the session is in, or begins next."""

    def arm(self) -> None:
        """Let its commit be refused with Conflict unless it is still the same."""


@cache  # building a statement takes longer than running it
def _claim(dialect: Dialect, inbox: Table) -> Insert:
    entered = dialect.insert_absent(inbox).values(received_at=database_now())
    return entered.returning(inbox.c.message_id)


@cache
def _insert_outbox(outbox: Table) -> Executable:
    return insert(outbox).returning(outbox.c.seq)


@cache
def _delete_outbox(outbox: Table) -> Executable:
    those = (
        outbox.c.seq.in_(bindparam("seqs", expanding=True)),
        outbox.c.attempts == bindparam("attempts"),
    )
    return delete(outbox).where(*those).returning(outbox.c.seq)
