"""The engine for PostgreSQL, directly or behind a pooler."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection, Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from eventmesh.persistence import postgresql_url, silence
from eventmesh.persistence.pooling import UNNAMED

_log = logging.getLogger("eventmesh.database")


def make_engine(
    url: URL, variable: str, connect_timeout: float, options: Mapping[str, Any]
) -> AsyncEngine:
    """An engine whose connections are watched, and that works behind a pooler. UsageError for
    parameters of the URL, which is in `variable`, that cannot be used."""
    said = postgresql_url.parameters(url, variable)
    context = postgresql_url.check_files(url, variable)
    arguments = {
        "timeout": connect_timeout,
        "async_creator_fn": silence.connect,
        "pool_mode": said.pool_mode,
        **said.arguments,
        **({} if context is None else {"ssl": context}),
    }
    engine = create_async_engine(url.set(query={}), connect_args=arguments, **options)
    connecting = _Connecting(variable, said.sslmode or os.environ.get("PGSSLMODE"))
    event.listen(engine.sync_engine, "do_connect", connecting.connect)
    return engine


def exposure(*, tls: ssl.SSLContext | None, is_local: bool, sslmode: str | None) -> str | None:
    """What others on the network can do to a connection, as far as nobody has asked for that."""
    if is_local or sslmode == "disable":
        return None
    if tls is None:
        return "is not encrypted, so that the network can read and change it"
    if tls.verify_mode is ssl.CERT_NONE:
        return "is encrypted, but to whom is not verified, so that another server could answer"
    return None


class _Connecting:
    """Opens the connections of one engine."""

    def __init__(self, variable: str, sslmode: str | None) -> None:
        self._variable = variable
        self._sslmode = sslmode
        self._warned = False
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
            self._warn(raw)
            if raw.lent.keeps_statements:
                return connection
            connection.close()  # before any statement is prepared by its name
            self._unnamed = True
        return dialect.connect(**options, **UNNAMED)

    def _warn(self, raw: Any) -> None:
        exposed = exposure(tls=raw.tls, is_local=raw.is_local, sslmode=self._sslmode)
        if exposed and not self._warned:
            self._warned = True
            _log.warning(
                "the connection to the database in %s %s: add "
                "sslmode=verify-full&sslrootcert=FILE to its URL, or sslmode=disable where the "
                "network is to be trusted",
                self._variable,
                exposed,
            )
