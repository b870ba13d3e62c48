"""`eventmesh schema inventory` and `retire`: which versions are still on their way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventmesh.cli.schema.common import AsJson, Names, say, say_json, services_of

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.review.inventory import Inventory, Stock


def inventory(services: Names = None, as_json: AsJson = False) -> None:
    """Count what is on its way in the running mesh, by message and version.

    In outboxes, on the broker, among the dead letters. RabbitMQ shows messages by handing them out
    only: all that waits in a queue is taken for a moment and given back, which it counts as a
    delivery.
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.review.inventory import take

    found = asyncio.run(
        take(services_of(services), settings_of_command(), SystemClock(), strays=not services)
    )
    if as_json:
        say_json(_as_dict(found))
    else:
        say(_as_text(found))


def retire(
    name: Annotated[str, typer.Argument(help="The message's name.")],
    version: Annotated[int, typer.Argument(help="Which version of it.", min=1)],
) -> None:
    """Say that a version is not sent any more, once there are no messages of it; exit code 4, and
    where they are, while there are some."""
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.review.retirement import retire as retire_version

    settings, clock = settings_of_command(), SystemClock()
    for path in asyncio.run(retire_version(name, version, services_of(None), settings, clock)):
        typer.echo(f"retired {name} v{version} in {path}")


def _as_text(found: Inventory) -> str:
    from eventmesh.printable import printable
    from eventmesh.review.inventory import told

    lines = [printable(f"{_title(stock)}: {stock}") for stock in found.stocks]
    lines += [printable(f"?: {told(hidden)}") for hidden in found.hidden]
    lines.append(f"{sum(stock.number for stock in found.stocks)} message(s)")
    return "".join(f"{line}\n" for line in lines)


def _title(stock: Stock) -> str:
    version = "of no version" if stock.version is None else f"v{stock.version}"
    return f"{stock.message or 'others'} {version}"


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
