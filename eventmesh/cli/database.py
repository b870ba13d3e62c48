"""`eventmesh db`: creates and upgrades EventMesh's tables in a service's database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.app import App

app = App(help="EventMesh's tables in a service's database.")


@app.callback()
def group() -> None:
    """EventMesh's tables in a service's database."""


@app.command()
def upgrade(
    services: Annotated[list[str], typer.Argument(help="Services.", metavar="SERVICE")],
    create: Annotated[
        bool,
        typer.Option("--create", help="Create the database on its server if it does not exist."),
    ] = False,
) -> None:
    """Create or upgrade the tables that EventMesh needs.

    The service's own tables are created where they are missing and are never
    altered. Exit code 4 if one of them lacks a column of its model: add it with
    a migration of the service's own.
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.errors import Drift
    from eventmesh.persistence import migration
    from eventmesh.persistence.database import Database
    from eventmesh.persistence.own_tables import require_own_tables
    from eventmesh.runtime.declaring.discovery import load_services

    settings = settings_of_command()

    async def run() -> None:
        differences = []
        for service in load_services(services, Path.cwd()):
            database = Database(settings.database_url(service.name), service=service.name)
            try:
                if create:
                    await migration.create_database(database)
                await database.connect()
                changed = await migration.upgrade(database, service.metadata)
                state = "upgraded to" if changed else "is at"
                typer.echo(f"{service.name}: {state} {migration.HEAD}")
                if service.metadata is not None:
                    await require_own_tables(database, service.metadata)
            except Drift as difference:
                differences.append(str(difference))
            finally:
                await database.close()
        if differences:
            raise Drift(" ".join(differences))

    asyncio.run(run())
