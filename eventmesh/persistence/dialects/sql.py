"""Column types, expressions and hints for PostgreSQL, MariaDB and SQLite: each has one meaning, in
the words of each database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    FromClause,
    Integer,
    LargeBinary,
    Select,
    String,
    Text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

_MARIADB = "mariadb"

TABLE_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "mariadb_engine": "InnoDB",
        "mariadb_row_format": "DYNAMIC",  # else two keys of 255 characters are too long
        "mariadb_charset": "utf8mb4",
        # Ids and keys are the same when they are letter by letter: case, accents, trailing spaces.
        "mariadb_collate": "utf8mb4_nopad_bin",
    }
)
"""For each of our tables."""


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite stores a text that sorts by time, MariaDB no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        microseconds = mysql.DATETIME(fsp=6) if dialect.name == _MARIADB else self.impl_instance
        return dialect.type_descriptor(microseconds)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


# SQLite generates numbers only in a column of exactly the type INTEGER.
Sequence = BigInteger().with_variant(Integer, "sqlite")

# MariaDB's types of these names end at 64 KiB.
Bytes = LargeBinary().with_variant(mysql.LONGBLOB(), _MARIADB)
LongText = Text().with_variant(mysql.LONGTEXT(), _MARIADB)


class Json(JSON):
    """JSON of any depth: MariaDB's own type JSON allows only 31 levels."""


@compiles(Json, _MARIADB)
def _json_mariadb(_type: Json, _compiler: object, **_options: Any) -> str:
    return "LONGTEXT"


def by_index(query: Select[Any], table: FromClause, index: str) -> Select[Any]:
    """Have MariaDB read the table by this index, however many rows its statistics, which follow
    slowly, say that there are."""
    return query.with_hint(table, f"FORCE INDEX ({index})", _MARIADB)


class refused_key(FunctionElement[str]):  # noqa: N801  # spelled as the column it is
    """`refused_key(outbox.c.key)` is the key of a row with attempts; for other rows it may be the
    key or NULL. MariaDB has no partial indexes, so there it is a generated, indexed column."""

    type = String()
    inherit_cache = True
    name = "refused_key"


@compiles(refused_key)
def _refused(element: refused_key, compiler: SQLCompiler, **options: Any) -> str:
    [key] = element.clauses
    return compiler.process(key, **options)


@compiles(refused_key, _MARIADB)
def _refused_mariadb(element: refused_key, compiler: SQLCompiler, **options: Any) -> str:
    table, _, _ = _refused(element, compiler, **options).rpartition(".")
    return f"{table}.refused_key"


class database_now(FunctionElement[datetime]):  # noqa: N801  # spelled as the SQL function it is
    """The time by the database's own clock, which all processes of a service share."""

    type = UtcDateTime()
    inherit_cache = True
    name = "database_now"


@compiles(database_now)
def _now(_element: database_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return "clock_timestamp()"


@compiles(database_now, "sqlite")
def _now_sqlite(_element: database_now, _compiler: SQLCompiler, **_options: Any) -> str:
    # Six digits, as SQLAlchemy writes times, so that texts compare as times.
    return "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


@compiles(database_now, _MARIADB)
@compiles(database_now, "mysql")  # as an application's own engine may be called
def _now_mariadb(_element: database_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return "UTC_TIMESTAMP(6)"
