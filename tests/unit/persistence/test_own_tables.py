from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, Table

from eventmesh.persistence.dialects.registry import MARIADB, POSTGRESQL
from eventmesh.persistence.own_tables import missing

LONG = "c" * 70


def metadata() -> MetaData:
    made = MetaData()
    Table("Accounts", made, Column("Owner", Integer), Column(LONG, Integer))
    Table("accounts", made, Column("id", Integer), schema="other")
    Table("eventmesh_inbox", made, Column("mine", Integer))
    return made


def test_tables_and_columns_that_are_not_found_are_missing() -> None:
    found = {(None, "Accounts"): frozenset({"Owner"})}
    assert missing(metadata(), found, POSTGRESQL.stored_name) == (
        ["other.accounts"],
        [f"Accounts.{LONG}"],
    )


def test_names_are_compared_as_the_database_keeps_them() -> None:
    other = {("other", "accounts"): frozenset({"id"})}
    cut = other | {(None, "Accounts"): frozenset({"Owner", LONG[:63]})}
    assert missing(metadata(), cut, POSTGRESQL.stored_name) == ([], [])
    lower = other | {(None, "Accounts"): frozenset({"owner", LONG})}
    assert missing(metadata(), lower, MARIADB.stored_name) == ([], [])
    assert missing(metadata(), lower, POSTGRESQL.stored_name) == ([], ["Accounts.Owner"])
