"""A database's clock, moved on by a test."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.database_time import DatabaseTime


class Moved(Protocol):
    ahead: timedelta


class MovedTime(DatabaseTime):
    """Instead of `database.time`: the time there, and so much more as `by.ahead` says."""

    def __init__(self, by: Moved) -> None:
        super().__init__()
        self._by = by

    async def ask(self, connection: AsyncConnection) -> datetime:
        return await super().ask(connection) + self._by.ahead

    def now(self) -> datetime:
        return super().now() + self._by.ahead
