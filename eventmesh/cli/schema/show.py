"""`eventmesh schema show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.schema.common import AsJson, say, say_json
from eventmesh.errors import EventMeshError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from collections.abc import Iterator

    from eventmesh.contracts.locks.lock_file import Lock
    from eventmesh.contracts.locks.lock_folder import Locks

Message = Annotated[
    str, typer.Argument(help="Its name, or name@version.", metavar="NAME[@VERSION]")
]


def show(message: Message, as_json: AsJson = False) -> None:
    """Show a frozen version: its fields, its status, and who publishes and reads it."""
    from eventmesh.contracts.locks.lock_folder import read_locks
    from eventmesh.review.schema_lookup import frozen, version_of
    from eventmesh.runtime.declaring.settings import load_settings

    locks = read_locks(load_settings().schemas)
    name, at, version = message.partition("@")
    versions = locks.of(name)
    if at:
        lock = version_of(locks, name, version)
    else:
        lock = frozen(locks, name, max(versions, default=1))[-1]
    told = _described(lock, locks)
    if as_json:
        say_json(told)
    else:
        say("\n".join(map(printable, _lines(told))) + "\n")


def _described(lock: Lock, locks: Locks) -> dict[str, Any]:
    from dataclasses import asdict

    from eventmesh.review.field_descriptions import fields

    versions = locks.of(lock.name)
    return {
        "name": lock.name,
        "version": lock.version,
        "revision": lock.revision,
        "kind": lock.kind,
        "key": lock.key,
        "status": lock.status,
        "sunset": lock.sunset and lock.sunset.isoformat(),
        "path": str(lock.path),
        "revisions": [revision.revision for revision in versions[lock.version]],
        "versions": {str(number): revisions[-1].status for number, revisions in versions.items()},
        "fields": [asdict(field) for field in fields(lock.writer, lock.reader)],
        "samples": len(lock.samples),
        **_users(lock.name),
    }


def _users(name: str) -> dict[str, Any]:
    """Who publishes and who reads it, where the project's services can be loaded."""
    from eventmesh.runtime.declaring.discovery import load_services, service_targets

    try:
        services = load_services([], Path.cwd()) if service_targets(Path.cwd()) else []
    except EventMeshError as error:
        return {"publishers": None, "subscribers": None, "services": str(error)}
    published = [
        service.name
        for service in services
        if (model := service.registry.get(name)) and service.registry.publishes(model)
    ]
    read = {
        handler.subscription.name: handler.models[name].__identity__.version
        for service in services
        for handler in service.handlers.values()
        if name in handler.models
    }
    return {"publishers": published, "subscribers": read}


def _lines(told: dict[str, Any]) -> Iterator[str]:
    key = f", key {told['key']}" if told["key"] else ""
    yield f"{told['name']} v{told['version']} ({told['kind']}{key})"
    sunset = f", sunset {told['sunset']}" if told["sunset"] else ""
    yield f"status:     {told['status']}{sunset}"
    yield f"frozen in:  {told['path']}"
    if len(told["revisions"]) > 1:
        yield f"revisions:  {', '.join(map(str, told['revisions']))}; this is {told['revision']}"
    versions = (f"{number} {status}" for number, status in told["versions"].items())
    yield f"versions:   {', '.join(versions)}"
    if told["publishers"] is not None:
        yield f"publishers: {', '.join(told['publishers']) or 'none here'}"
        readers = [f"{name} (as v{version})" for name, version in told["subscribers"].items()]
        yield f"read by:    {', '.join(readers) or 'nobody here'}"
    else:
        yield f"services:   not known: {told['services']}"
    yield ""
    yield from _table(told["fields"])


def _table(fields: list[dict[str, Any]]) -> Iterator[str]:
    rows = [("field", "needed", "default", "what")]
    rows += [
        (
            field["name"],
            "yes" if field["required"] else "no",
            "" if field["default"] is None else field["default"],
            field["type"] if field["written"] else f"{field['type']}; not always written",
        )
        for field in fields
    ]
    widths = [min(max(len(row[column]) for row in rows), 24) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[3]]).rstrip()
