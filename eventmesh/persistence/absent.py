"""Inserting what is not there, in each database's own words."""

from __future__ import annotations

from sqlalchemy import Insert, Table
from sqlalchemy.dialects import postgresql, sqlite

from eventmesh.persistence.dialects import mariadb


def insert_absent(dialect: str, table: Table) -> Insert:
    """Insert the rows that are not there; what it returns is of these only. An uncommitted row of
    another transaction is waited for."""
    if dialect == mariadb.NAME:
        return mariadb.insert_new(table)
    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()
