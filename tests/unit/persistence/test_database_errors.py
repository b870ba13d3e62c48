"""Which errors say that a database is away, and which that a statement is wrong."""

from __future__ import annotations

import pytest
from asyncpg.exceptions import InternalClientError
from sqlalchemy.exc import InternalError

from eventmesh.persistence.database_errors import connection_lost


@pytest.mark.parametrize(("statement", "lost"), [(None, True), ("SELECT 1", False)])
def test_a_confused_driver_is_waited_out_at_the_attempt_to_connect_only(
    statement: str | None, lost: bool
) -> None:
    """asyncpg says this if the server ends a connection right after the login."""
    confused = InternalClientError("cannot switch to state 11; another operation is in progress")
    assert connection_lost(InternalError(statement, None, confused)) is lost
