"""`eventmesh db`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="The tables of EventMesh in a service's database.")


@app.callback()
def group() -> None:
    """The tables of EventMesh in a service's database."""


@app.command()
def upgrade(
    services: Annotated[list[str], typer.Argument(help="Services.", metavar="SVC...")],
    create: Annotated[
        bool, typer.Option("--create", help="Make a server's database that does not exist.")
    ] = False,
) -> None:
    """Bring a service's database to the tables that this version of EventMesh needs.

    The service's own tables are made where they are missing, and never changed. Exit code 4 when
    one of them lacks a column of its model: that is for a migration of the service's own.
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
