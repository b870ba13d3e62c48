"""Whether a service's own tables are in its database as its SQLAlchemy models expect them.

EventMesh makes tables that are missing, and never alters one that exists. So a column that was
added to a model is not in the database until somebody has migrated it, and every message whose
handler needs it would fail. A worker checks this at its start, and does not become ready.

Only missing tables and columns are errors. Types, indexes and constraints have many spellings, and
anything that the database has in addition does no harm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from sqlalchemy import Connection, MetaData, Table, inspect
from sqlalchemy.engine.reflection import ObjectKind, ObjectScope
from sqlalchemy.exc import SAWarning

from eventmesh.errors import Drift
from eventmesh.persistence.database import Database

_MOST_NAMED = 20

Columns = Mapping[tuple[str | None, str], frozenset[str]]
"""The columns of each table that is there, by the table's schema and name."""


async def require_own_tables(database: Database, metadata: MetaData) -> None:
    """Drift, with what is missing and what to do, unless the database has all tables and columns of
    the metadata."""
    async with database.reading() as connection:
        found = await connection.run_sync(_columns, metadata)
    tables, columns = missing(metadata, found, database.dialect.stored_name)
    if not (tables or columns):
        return
    lacks = [*(f"table {name}" for name in tables), *(f"column {name}" for name in columns)]
    more = len(lacks) - _MOST_NAMED
    told = ", ".join(lacks[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    advice = []
    if tables:
        advice.append(f"Run `eventmesh db upgrade {database.service}`, which makes missing tables.")
    if columns:
        advice.append(
            "EventMesh never alters a table that exists: add the columns by a migration of the "
            "service's own, such as Alembic's, before the new code starts."
        )
    raise Drift(
        f"The database of service {database.service!r} ({database.shown_url}) lacks what the "
        f"service's models have: {told}. {' '.join(advice)}"
    )


def missing(
    metadata: MetaData, found: Columns, stored_name: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """The tables, and the columns of other tables, that the metadata has and the database lacks.
    `stored_name` is how the database compares a column's name."""
    tables, columns = [], []
    for table in _checked(metadata):
        there = found.get((table.schema, table.name))
        if there is None:
            tables.append(str(table))
            continue
        known = {stored_name(name) for name in there}
        columns += [
            f"{table}.{column.name}"
            for column in table.columns
            if not column.system and stored_name(column.name) not in known
        ]
    return tables, columns


def _checked(metadata: MetaData) -> list[Table]:
    """The service's own tables, except temporary ones, which each connection has for itself."""
    return [
        table
        for name, table in sorted(metadata.tables.items())
        if not table.name.startswith("eventmesh_") and "TEMPORARY" not in table._prefixes
    ]


def _columns(connection: Connection, metadata: MetaData) -> Columns:
    """The columns of the tables and views that are there. This takes one query on PostgreSQL, and
    one or two for each table elsewhere."""
    by_schema: dict[str | None, list[str]] = {}
    for table in _checked(metadata):
        by_schema.setdefault(table.schema, []).append(table.name)
    found: dict[tuple[str | None, str], frozenset[str]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SAWarning)  # about unknown types; we only need names
        for schema, names in by_schema.items():
            reflected = inspect(connection).get_multi_columns(
                schema=schema, filter_names=names, kind=ObjectKind.ANY, scope=ObjectScope.ANY
            )
            for key, columns in reflected.items():
                found[key] = frozenset(column["name"] for column in columns)
    return found
