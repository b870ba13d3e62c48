"""Which errors say that a database is away, and which that a statement is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from asyncmy.errors import OperationalError
from asyncpg.exceptions import (
    InsufficientPrivilegeError,
    InternalClientError,
    InvalidCatalogNameError,
)
from sqlalchemy.exc import InternalError, ProgrammingError

from eventmesh.errors import Unreachable
from eventmesh.persistence.database import Database
from eventmesh.persistence.database_errors import connection_lost


@pytest.mark.parametrize(("statement", "lost"), [(None, True), ("SELECT 1", False)])
def test_a_confused_driver_is_waited_out_at_the_attempt_to_connect_only(
    statement: str | None, lost: bool
) -> None:
    """asyncpg says this if the server ends a connection right after the login."""
    confused = InternalClientError("cannot switch to state 11; another operation is in progress")
    assert connection_lost(InternalError(statement, None, confused)) is lost


def said_of(error: Exception) -> str:
    """What is said of the database of the service orders when it fails with this."""
    database = Database("postgresql://ada@db/orders", service="orders")
    with pytest.raises(Unreachable) as raised, database.translated():
        raise error
    return str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        InternalError(
            None,
            None,
            InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
            connection_invalidated=True,
        ),
        ConnectionError("unexpected connection_lost() call"),
    ],
)
def test_a_lost_connection_is_called_that_and_not_by_the_inner_state_of_the_driver(
    error: Exception,
) -> None:
    said = said_of(error)
    assert "does not answer: the connection was lost. Start it, or correct EVENTMESH_" in said


def test_a_database_that_is_missing_on_a_server_that_answers_is_not_said_not_to_answer() -> None:
    missing = InvalidCatalogNameError('database "orders" does not exist')
    said = said_of(ProgrammingError(None, None, missing))
    assert 'cannot be used: database "orders" does not exist. Make it with `eventmesh db' in said


async def test_a_file_is_not_to_be_started(tmp_path: Path) -> None:
    (tmp_path / "orders.db").write_text("not a database, but a file that is long enough to be one")
    database = Database(f"sqlite:///{tmp_path}/orders.db", service="orders")
    with pytest.raises(Unreachable) as raised:
        await database.connect()
    await database.close()
    said = str(raised.value)
    assert "cannot be used: file is not a database. See that this user may read" in said
    assert "Start it" not in said


DENIED = {
    "postgresql": InsufficientPrivilegeError("permission denied for table eventmesh_lease"),
    "mariadb": OperationalError(1142, "INSERT command denied to user 'ada'@'%' for table `lease`"),
}


@pytest.mark.parametrize("kind", DENIED)
def test_a_right_that_eventmesh_itself_lacks_is_an_error_with_advice(kind: str) -> None:
    denied = ProgrammingError("SELECT 1", None, DENIED[kind])
    database = Database("postgresql://ada@db/orders", service="orders")
    with pytest.raises(Unreachable) as raised, database.own_statements():
        raise denied
    assert "denied" in str(raised.value)
    assert str(raised.value).endswith(
        "Grant the user in EVENTMESH_ORDERS_DATABASE_URL the rights that it lacks; "
        "`eventmesh doctor` lists them."
    )


def test_a_right_that_a_handler_lacks_is_the_error_of_its_statement() -> None:
    denied = ProgrammingError("SELECT 1", None, DENIED["postgresql"])
    database = Database("postgresql://ada@db/orders", service="orders")
    with pytest.raises(ProgrammingError), database.translated():
        raise denied
