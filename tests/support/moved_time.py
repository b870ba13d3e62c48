"""A database's clock that a test moves forward."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import Connection

from eventmesh.persistence.database_time import DatabaseTime


class Moved(Protocol):
    ahead: timedelta


class MovedTime(DatabaseTime):
    """Replaces `database.time`: the database's time plus `by.ahead`."""

    def __init__(self, by: Moved) -> None:
        super().__init__()
        self._by = by

    def read(self, connection: Connection) -> datetime:
        return super().read(connection) + self._by.ahead

    def now(self) -> datetime:
        return super().now() + self._by.ahead
