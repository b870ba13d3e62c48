"""The engine for PostgreSQL, directly or behind a pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from eventmesh.persistence import silence
from eventmesh.persistence.pooling import UNNAMED


def make_engine(url: URL, connect_timeout: float, options: Mapping[str, Any]) -> AsyncEngine:
    """An engine whose connections are watched, and that works behind a pooler."""
    arguments = {"timeout": connect_timeout, "async_creator_fn": silence.connect}
    engine = create_async_engine(url, connect_args=arguments, **options)
    event.listen(engine.sync_engine, "do_connect", _Connecting().connect)
    return engine


class _Connecting:
    """Opens the connections of one engine."""

    def __init__(self) -> None:
        self._unnamed = False
        """Whether a connection was to a pooler that keeps no statements. The next ones, too, then
        are opened accordingly at once; to another server that would only be slower."""

    def connect(
        self,
        dialect: Dialect,
        _record: ConnectionPoolEntry,
        _arguments: object,
        options: Mapping[str, Any],
    ) -> DBAPIConnection:
        """What SQLAlchemy calls for each of them."""
        if not self._unnamed:
            connection = dialect.connect(**options)
            raw: Any = connection.driver_connection
            if raw.lent.keeps_statements:
                return connection
            connection.close()  # before any statement is prepared by its name
            self._unnamed = True
        return dialect.connect(**options, **UNNAMED)
