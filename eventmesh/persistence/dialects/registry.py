"""Which dialect a URL, an engine or a connection is of, and what errors say in any of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.dialects.base import Dialect
from eventmesh.persistence.dialects.mariadb.dialect import MariaDB
from eventmesh.persistence.dialects.postgresql.dialect import PostgreSQL
from eventmesh.persistence.dialects.sqlite import SQLite

POSTGRESQL, MARIADB, SQLITE = PostgreSQL(), MariaDB(), SQLite()

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {each.name: each for each in (POSTGRESQL, MARIADB, SQLITE)}
)
"""By SQLAlchemy's names."""

_ALIASES = {"mysql": MARIADB.name}  # by which applications often call MariaDB


def dialect_named(name: str) -> Dialect | None:
    """The dialect that SQLAlchemy calls so; None for one that EventMesh does not know."""
    return DIALECTS.get(_ALIASES.get(name, name))


def dialect_of(bind: Connection | AsyncConnection | Engine) -> Dialect:
    """The dialect of this engine or connection; KeyError for one that EventMesh does not know."""
    name = bind.dialect.name
    return DIALECTS[_ALIASES.get(name, name)]


NO_TABLE = "42P01"
"""The SQLSTATE of a statement on a table that is not there."""


def sqlstate(error: DBAPIError) -> str:
    """The SQLSTATE for what the driver said, whichever it is; empty where it is not known."""
    states = (dialect.sqlstate(error.orig) for dialect in (MARIADB, SQLITE, POSTGRESQL))
    return next(filter(None, states), "")
