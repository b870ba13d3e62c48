"""`eventmesh partitions`: into how many partitions an ordered subscription is divided."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.actions import SERVER_TIMEOUT, Reason, check_reason, log_actions
from eventmesh.cli.app import App
from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from collections.abc import Sequence

    from eventmesh.runtime.declaring.service import DeclaredService
    from eventmesh.transports.base import Subscription

app = App(help="The partitions of ordered subscriptions on RabbitMQ.")


@app.callback()
def _group() -> None:
    """A group, although it has one command."""


@app.command("set")
def set_partitions(
    subscription: Annotated[
        str, typer.Argument(help="The subscription, such as bank.deposit.", metavar="SUBSCRIPTION")
    ],
    partitions: Annotated[int, typer.Argument(help="Their new number.", min=1, max=256)],
    reason: Reason,
) -> None:
    """Divide an ordered subscription into another number of partitions.

    Stop its workers first; publishers may go on. What waits is moved, and
    stays in order. Then start workers whose code declares the new number.
    Begin again if the command was interrupted: it continues.

    \b
    Example:
      eventmesh partitions set bank.deposit 32 --reason "for more workers"
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.action_log import Action, operator_of_machine, recorded
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services
    from eventmesh.transports.factory import open_transport
    from eventmesh.transports.ordering import HasPartitions

    check_reason(reason)
    services, settings = load_services([], Path.cwd()), settings_of_command()
    service, wanted = _subscription(services, subscription)
    action = Action(
        service=service.name,
        who=operator_of_machine(),
        what="set partitions",
        subject=subscription,
        reason=reason,
        details={"partitions": partitions},
    )
    log_actions(settings, is_recorded=service.needs_database)

    async def run() -> int:
        clock, options = SystemClock(), settings.transport_options
        async with (
            open_transport(settings.broker_url, clock, options) as transport,
            Reach(services, settings, clock, answer_timeout=SERVER_TIMEOUT) as reach,
        ):
            if not isinstance(transport, HasPartitions):
                raise UsageError(
                    "This broker keeps the messages of each key in order without partitions, so "
                    "there is nothing to set."
                )
            async with recorded(reach, action) as recording:
                before = await transport.set_partitions(wanted, partitions)
                if before is None:
                    raise UsageError(
                        f"{subscription} has no partitions on the broker: start its workers, which "
                        f"declare it, with the number that you want."
                    )
                recording.outcome = f"{partitions} instead of {before}"
                return before

    before = asyncio.run(run())
    if before == partitions:
        typer.echo(f"{subscription}: has {partitions} partitions already")
    else:
        typer.echo(f"{subscription}: {partitions} partitions instead of {before}")


def _subscription(
    services: Sequence[DeclaredService], name: str
) -> tuple[DeclaredService, Subscription]:
    known = {
        handler.subscription.name: (service, handler.subscription)
        for service in services
        for handler in service.handlers.values()
    }
    if name not in known:
        ordered = [each for each, (_, found) in sorted(known.items()) if found.order is not None]
        raise UsageError(
            f"There is no subscription {name!r} in this project. Its ordered subscriptions: "
            f"{', '.join(ordered) or 'none'}."
        )
    if known[name][1].order is None:
        raise UsageError(f"{name} has no order: declare it with ordered=True first.")
    return known[name]
