from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, Table

from eventmesh.persistence.dialects.registry import MARIADB, POSTGRESQL
from eventmesh.persistence.own_tables import missing

LONG = "c" * 70


def make_metadata() -> MetaData:
    metadata = MetaData()
    Table("Accounts", metadata, Column("Owner", Integer), Column(LONG, Integer))
    Table("accounts", metadata, Column("id", Integer), schema="other")
    Table("eventmesh_inbox", metadata, Column("mine", Integer))
    return metadata


def test_tables_and_columns_that_do_not_exist_are_missing() -> None:
    found = {(None, "Accounts"): frozenset({"Owner"})}
    assert missing(make_metadata(), found, POSTGRESQL.stored_name) == (
        ["other.accounts"],
        [f"Accounts.{LONG}"],
    )


def test_names_are_compared_as_the_database_stores_them() -> None:
    other = {("other", "accounts"): frozenset({"id"})}
    truncated = other | {(None, "Accounts"): frozenset({"Owner", LONG[:63]})}
    assert missing(make_metadata(), truncated, POSTGRESQL.stored_name) == ([], [])
    lower = other | {(None, "Accounts"): frozenset({"owner", LONG})}
    assert missing(make_metadata(), lower, MARIADB.stored_name) == ([], [])
    assert missing(make_metadata(), lower, POSTGRESQL.stored_name) == ([], ["Accounts.Owner"])
