"""`eventmesh schema show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.schema.common import AsJson, say, say_json
from eventmesh.cli.schema.shapes import show_shape
from eventmesh.errors import EventMeshError
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from collections.abc import Iterator

    from eventmesh.contracts.locks.lock_file import Lock
    from eventmesh.contracts.locks.lock_folder import Locks

Message = Annotated[
    str, typer.Argument(help="A message; by default its newest version.", metavar="NAME[@VERSION]")
]


def show(message: Message, as_json: AsJson = False) -> None:
    """Show a frozen version: its fields, status, publishers and readers; of a saga, its shape."""
    from eventmesh.contracts.locks.lock_folder import read_locks
    from eventmesh.review.schema_lookup import find_revision, find_revisions
    from eventmesh.runtime.declaring.settings import load_settings

    locks = read_locks(load_settings().schemas)
    name, at, version = message.partition("@")
    versions = locks.of(name)
    if not versions and show_shape(locks.root, name, version, as_json=as_json):
        return
    if at:
        lock = find_revision(locks, name, version)
    else:
        lock = find_revisions(locks, name, max(versions, default=1))[-1]
    described = _describe(lock, locks)
    if as_json:
        say_json(described)
    else:
        say("\n".join(map(printable, _lines(described))) + "\n")


def _describe(lock: Lock, locks: Locks) -> dict[str, Any]:
    from dataclasses import asdict

    from eventmesh.review.field_descriptions import describe_fields

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
        "fields": [asdict(field) for field in describe_fields(lock.writer, lock.reader)],
        "samples": len(lock.samples),
        **_users(lock.name),
    }


def _users(name: str) -> dict[str, Any]:
    """The publishers and subscribers of a message, if the project's services can be loaded."""
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


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    key = f", key {shown['key']}" if shown["key"] else ""
    yield f"{shown['name']} v{shown['version']} ({shown['kind']}{key})"
    sunset = f", sunset {shown['sunset']}" if shown["sunset"] else ""
    yield f"status:     {shown['status']}{sunset}"
    yield f"frozen in:  {shown['path']}"
    if len(shown["revisions"]) > 1:
        yield f"revisions:  {', '.join(map(str, shown['revisions']))}; this is {shown['revision']}"
    versions = (f"{number} {status}" for number, status in shown["versions"].items())
    yield f"versions:   {', '.join(versions)}"
    if shown["publishers"] is not None:
        yield f"publishers: {', '.join(shown['publishers']) or 'none in this project'}"
        readers = [f"{name} (as v{version})" for name, version in shown["subscribers"].items()]
        yield f"read by:    {', '.join(readers) or 'none in this project'}"
    else:
        yield f"services:   could not be loaded: {shown['services']}"
    yield ""
    yield from _table(shown["fields"])


def _table(fields: list[dict[str, Any]]) -> Iterator[str]:
    rows = [("field", "required", "default", "type")]
    rows += [
        (
            field["name"],
            "yes" if field["required"] else "no",
            "" if field["default"] is None else field["default"],
            field["type"] if field["written"] else f"{field['type']}; not always sent",
        )
        for field in fields
    ]
    widths = [min(max(len(row[column]) for row in rows), 24) for column in range(3)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[3]]).rstrip()
