"""The engine for PostgreSQL, directly or behind a pooler."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from eventmesh.persistence.dialects.exposure import ExposureWarning
from eventmesh.persistence.dialects.postgresql import connections
from eventmesh.persistence.dialects.postgresql import url as urls
from eventmesh.persistence.dialects.postgresql.pooling import UNNAMED


def make_engine(
    url: URL,
    variable: str,
    connect_timeout: float,
    options: Mapping[str, Any],
    session_settings: Mapping[str, str] | None = None,
) -> AsyncEngine:
    """An engine whose connections are watched, and that works behind a pooler. UsageError for
    parameters of the URL that cannot be used; it is in the environment variable `variable`. Without
    a pooler, its connections have the `session_settings`."""
    said = urls.parameters(url, variable)
    context = urls.check_files(url, variable)
    arguments = {
        "timeout": connect_timeout,
        "async_creator_fn": connections.connect,
        "pool_mode": said.pool_mode,
        "session_settings": session_settings,
        **said.arguments,
        **({} if context is None else {"ssl": context}),
    }
    engine = create_async_engine(url.set(query={}), connect_args=arguments, **options)
    is_accepted = (said.sslmode or os.environ.get("PGSSLMODE")) == "disable"
    warning = ExposureWarning(
        variable,
        # With settings, it is the second engine of a database, of which the first one has warned.
        accepted=is_accepted or session_settings is not None,
        write="sslmode=verify-full&sslrootcert=FILE to its URL, or sslmode=disable",
    )
    event.listen(engine.sync_engine, "do_connect", _Connecting(warning).connect)
    return engine


class _Connecting:
    """Opens the connections of one engine."""

    def __init__(self, warning: ExposureWarning) -> None:
        self._warning = warning
        self._unnamed = False
        """Whether a connection was to a pooler that keeps no prepared statements. From then on all
        are opened for such a pooler at once; with any other server that would only be slower."""

    def connect(
        self,
        dialect: Dialect,
        _record: ConnectionPoolEntry,
        _arguments: object,
        options: Mapping[str, Any],
    ) -> DBAPIConnection:
        """Called by SQLAlchemy for each of them."""
        if not self._unnamed:
            connection = dialect.connect(**options)
            raw: Any = connection.driver_connection
            self._warning.look_at(raw.tls, is_local=raw.is_local)
            if raw.pooling.keeps_statements:
                return connection
            connection.close()  # before any statement is prepared by its name
            self._unnamed = True
        return dialect.connect(**options, **UNNAMED)
