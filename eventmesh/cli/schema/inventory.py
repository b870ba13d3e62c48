"""`eventmesh schema inventory` and `retire`: which versions are still in use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.schema.common import AsJson, Names, say, say_json, services_of
from eventmesh.errors import Drift
from eventmesh.printable import printable

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.review.inventory import Inventory, Stock
    from eventmesh.runtime.declaring.settings import Settings


def inventory(services: Names = None, as_json: AsJson = False) -> None:
    """Count the messages in the running system, by version.

    Messages in outboxes, on the broker and among the dead letters are counted. On RabbitMQ, every
    message that waits in a queue is received and given back for this, which RabbitMQ counts as a
    delivery.
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.review.inventory import take_inventory

    found = asyncio.run(
        take_inventory(
            services_of(services), settings_of_command(), SystemClock(), strays=not services
        )
    )
    if as_json:
        say_json(_as_dict(found))
    else:
        say(_as_text(found))


def retire(
    name: Annotated[
        str, typer.Argument(help="The name of the message, or of the saga.", metavar="NAME")
    ],
    version: Annotated[int, typer.Argument(help="The version to retire.", min=1, metavar="N")],
) -> None:
    """Mark a version as retired: it is not sent any more, or no saga of it is open.

    Exit code 4, with the places of its messages, if there are any left or a service still sends it;
    for a saga, with the number of those that are open.
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.review.retirement import retire as retire_version
    from eventmesh.saga import shape_locks

    settings, clock = settings_of_command(), SystemClock()
    if shape_locks.read_shapes(settings.schemas, name).locks:
        asyncio.run(refuse_open_sagas(name, version, settings))
        path = shape_locks.retire(settings.schemas, name, version)
        typer.echo(f"retired {name} v{version} in {path}")
        return
    for path in asyncio.run(retire_version(name, version, services_of(None), settings, clock)):
        typer.echo(f"retired {name} v{version} in {path}")


async def refuse_open_sagas(name: str, version: int, settings: Settings) -> None:
    """Drift if sagas of this version, or an older one, are open."""
    from eventmesh.persistence.existing import existing
    from eventmesh.persistence.sagas import census

    owner = name.partition(".")[0]
    async with (
        existing(settings.database_url(owner), owner) as database,
        database.reading() as connection,
    ):
        lots = await census(connection, name)
    count = sum(lot.count for lot in lots if lot.version <= version)
    if count:
        raise Drift(
            f"{count:,} sagas {name} of version {version} or older are open: wait until they have "
            f"ended, see `eventmesh saga list {owner}`."
        )


def _as_text(found: Inventory) -> str:
    from eventmesh.review.inventory import describe_hidden

    lines = [printable(f"{_title(stock)}: {stock}") for stock in found.stocks]
    lines += [printable(describe_hidden(hidden)) for hidden in found.hidden]
    total = sum(stock.number for stock in found.stocks)
    lines.append(f"{total} message{'' if total == 1 else 's'}")
    return "".join(f"{line}\n" for line in lines)


def _title(stock: Stock) -> str:
    version = "without a version" if stock.version is None else f"v{stock.version}"
    return f"{stock.message or 'other messages'} {version}"


def _as_dict(found: Inventory) -> dict[str, Any]:
    return {
        "messages": [
            {
                "message": stock.message,
                "version": stock.version,
                "number": stock.number,
                "place": stock.place,
                "service": stock.service or None,
                "subscription": stock.subscription or None,
                "oldest": stock.oldest and stock.oldest.isoformat(),
            }
            for stock in found.stocks
        ],
        "hidden": [
            {
                "subscription": hidden.subscription,
                "state": hidden.state,
                "number": hidden.number,
                "why": hidden.why,
            }
            for hidden in found.hidden
        ],
    }
