"""`eventmesh pause` and `eventmesh resume`: whether a subscription is consumed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.actions import Reason, check_reason, log_actions

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.operations.pausing import Deed

Subscription = Annotated[
    str, typer.Argument(help="The subscription, such as bank.deposit.", metavar="SUBSCRIPTION")
]


def pause(subscription: Subscription, reason: Reason) -> None:
    """Stop consuming a subscription, on all workers, until it is resumed.

    Workers finish the messages that they began, and take no new ones after a
    few seconds. What waits is kept, also over restarts of workers and servers.
    `eventmesh status` shows what is paused.

    \b
    Example:
      eventmesh pause bank.deposit --reason "the ledger is being repaired"
    """
    if _act(subscription, "pause", reason):
        typer.echo(f"{subscription}: paused; workers notice within a few seconds")
    else:
        typer.echo(f"{subscription}: is paused already, see `eventmesh status`")


def resume(subscription: Subscription, reason: Reason) -> None:
    """Consume a paused subscription again.

    \b
    Example:
      eventmesh resume bank.deposit --reason "the ledger is repaired"
    """
    if _act(subscription, "resume", reason):
        typer.echo(f"{subscription}: resumed; workers notice within a few seconds")
    else:
        typer.echo(f"{subscription}: is not paused")


def _act(subscription: str, deed: Deed, reason: str) -> bool:
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.action_log import operator_of_machine
    from eventmesh.operations.pausing import pausable, pause_or_resume
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services

    check_reason(reason)
    services, settings = load_services([], Path.cwd()), settings_of_command()
    service, handler = pausable(services, subscription)
    log_actions(settings, is_recorded=True)

    async def run() -> bool:
        async with Reach(services, settings, SystemClock()) as reach:
            return await pause_or_resume(
                reach, service, handler, deed, operator_of_machine(), reason
            )

    return asyncio.run(run())
