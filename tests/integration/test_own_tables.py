"""The check that a service's own tables have the columns of its models, on each kind of
database."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, text

from eventmesh import Service, Settings
from eventmesh.errors import Drift
from eventmesh.persistence import migration
from eventmesh.persistence.database import Database
from eventmesh.persistence.own_tables import require_own_tables

EVERYWHERE = pytest.mark.parametrize(
    "database_url", ["sqlite", "postgres", "mariadb"], indirect=True
)


def tables(*columns: str, name: str = "accounts") -> MetaData:
    """Metadata of a table with these columns."""
    metadata = MetaData()
    Table(
        name,
        metadata,
        Column("owner", String(50), primary_key=True),
        *(Column(each, Integer) for each in columns),
    )
    return metadata


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with the table accounts, whose columns are owner, cents and Limit."""
    database = Database(database_url, service="bank")
    await migration.upgrade(database, tables("cents", "Limit"))
    yield database
    await database.close()


@EVERYWHERE
async def test_a_database_with_all_tables_and_columns_is_accepted(database: Database) -> None:
    await require_own_tables(database, tables("cents", "Limit"))
    await require_own_tables(database, tables("cents"))  # further columns are accepted
    await require_own_tables(database, MetaData())


@EVERYWHERE
async def test_a_missing_column_is_named_with_the_fix(database: Database) -> None:
    with pytest.raises(Drift, match=r"column accounts\.iban, column accounts\.zip\.") as raised:
        await require_own_tables(database, tables("cents", "iban", "zip"))
    assert "a migration of the service's own" in str(raised.value)
    assert "db upgrade" not in str(raised.value)


@EVERYWHERE
async def test_a_missing_table_is_named_with_the_command_that_creates_it(
    database: Database,
) -> None:
    metadata = tables("cents", name="audits")
    with pytest.raises(Drift, match=r"table audits\. Run `eventmesh db upgrade bank`") as raised:
        await require_own_tables(database, metadata)
    assert "migration" not in str(raised.value)
    await migration.upgrade(database, metadata)
    await require_own_tables(database, metadata)


@EVERYWHERE
async def test_a_view_counts_as_a_table_and_temporary_tables_are_not_checked(
    database: Database,
) -> None:
    async with database.connection() as connection:
        await connection.execute(text("CREATE VIEW rich AS SELECT owner, cents FROM accounts"))
    metadata = tables("cents", name="rich")
    Table("scratch", metadata, Column("id", Integer), prefixes=["TEMPORARY"])
    await require_own_tables(database, metadata)


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_a_column_type_unknown_to_sqlalchemy_is_accepted(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(text("CREATE TYPE pair AS (a int, b int)"))
        await connection.execute(text("ALTER TABLE accounts ADD COLUMN both_ pair"))
        await connection.execute(text("CREATE SCHEMA other"))
        await connection.execute(text("CREATE TABLE other.accounts (owner text)"))
    metadata = tables("both_")
    xmin = Column("xmin", Integer, system=True)
    Table("accounts", metadata, Column("owner", String), xmin, schema="other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await require_own_tables(database, metadata)


@EVERYWHERE
async def test_a_service_does_not_open_a_database_that_lacks_a_column(
    database: Database, database_url: str
) -> None:
    service = Service("bank", metadata=tables("cents", "iban"))
    service.configure(Settings(database_urls={"bank": database_url}))
    with pytest.raises(Drift, match=r"column accounts\.iban"):
        await service.database()
    await service.close()
    async with database.connection() as connection:
        await connection.execute(text("ALTER TABLE accounts ADD COLUMN iban INTEGER"))
    await service.database()
    await service.close()
