"""Collecting the facts that the rules for all services together need.

The rules in `contracts/fleet` are pure functions of these facts: who publishes and reads which
model, what is frozen, and which database each service uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eventmesh.contracts.fleet import DatabaseUse, Facts, Frozen, Publication, Reading
from eventmesh.contracts.message import Message
from eventmesh.persistence.database_url import is_file, parse_url
from eventmesh.redact import redact_error
from eventmesh.review.foreign_imports import Home, place_of_service
from eventmesh.review.python_sources import Sources
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.settings import Settings

_DEFAULT_PORTS = {"postgresql": 5432, "mariadb": 3306}
_THIS_MACHINE = {"", "127.0.0.1", "::1", "localhost"}


def collect_facts(
    services: Sequence[Service],
    frozen: Frozen,
    settings: Settings,
    sources: Sources,
    homes: Mapping[str, Home],
) -> Facts:
    """The facts of all services of a project; UsageError for a database URL that is not valid."""
    return Facts(
        services=tuple(service.name for service in services),
        frozen=frozen,
        publications=tuple(
            Publication(
                service.name, model, service.registry.written(model), sources.place_of_class(model)
            )
            for service in services
            for model in service.registry.published()
        ),
        readings=tuple(reading for service in services for reading in _readings(service, sources)),
        databases=tuple(
            _database_use(service, settings, sources, homes.get(service.name))
            for service in services
        ),
    )


def _readings(service: Service, sources: Sources) -> list[Reading]:
    subscriptions: dict[type[Message], list[str]] = {}
    for name, handler in sorted(service.handlers.items()):
        for model in handler.models.values():
            if model.__is_internal__:
                continue
            subscriptions.setdefault(model, []).append(name)
    return [
        Reading(service.name, tuple(names), model, sources.place_of_class(model))
        for model, names in subscriptions.items()
    ]


def _database_use(
    service: Service, settings: Settings, sources: Sources, home: Home | None
) -> DatabaseUse:
    url = settings.database_url(service.name)
    return DatabaseUse(
        service.name,
        database_name(url, service.name, sources.root) if service.needs_database else "",
        given=settings.given_database_url(service.name) is not None,
        shares_with=service.shares_database_with,
        tables=frozenset(service.metadata.tables) if service.metadata is not None else frozenset(),
        metadata=None if service.metadata is None else id(service.metadata),
        place=place_of_service(service.name, home, sources),
    )


def database_name(url: str, service: str, folder: Path) -> str:
    """The same name for the same database, however its URL is written.

    It has no user, password or options. Empty for a SQLite database in memory, which cannot be
    shared. `folder` is where relative paths begin.
    """
    parsed = parse_url(url, service)
    backend, database = parsed.get_backend_name(), parsed.database or ""
    if is_file(parsed):
        path = database.removeprefix("file:")
        if path in ("", ":memory:") or _option(parsed.query, "mode") == "memory":
            return ""
        return f"sqlite:///{(folder / path).resolve()}"
    if socket := _option(parsed.query, "unix_socket"):  # the driver ignores host and port then
        return f"{backend}://{socket}/{database}"
    host = (parsed.host or _option(parsed.query, "host")).rstrip(".").lower()
    port = parsed.port or _option(parsed.query, "port") or _DEFAULT_PORTS.get(backend, "")
    where = "localhost" if host in _THIS_MACHINE else host
    return redact_error(f"{backend}://{where}:{port}/{database or parsed.username or ''}", url)


def _option(query: Mapping[str, tuple[str, ...] | str], name: str) -> str:
    value = query.get(name, "")
    return value if isinstance(value, str) else ",".join(value)
