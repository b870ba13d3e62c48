"""Column types and expressions that mean the same on PostgreSQL and on SQLite."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, DateTime, Integer
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC. SQLite keeps it as text, which sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


# SQLite counts up by itself only in a column of exactly the type INTEGER.
Sequence = BigInteger().with_variant(Integer, "sqlite")


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
