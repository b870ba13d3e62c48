"""What commands that act on a running mesh share: who acts, why, and on what.

Each action is recorded in the log of actions, see `eventmesh.operations.action_log`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventmesh.cli.app import utf8
from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when a command runs; see `eventmesh.cli`
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.service import DeclaredService as Service
    from eventmesh.runtime.declaring.settings import Settings

Reason = Annotated[
    str,
    typer.Option(
        "--reason", help="Why; it is kept in the log of actions.", metavar="TEXT", callback=utf8
    ),
]

SERVER_TIMEOUT = 60.0
"""Seconds for one request to a database: a command may wait longer than a page of the dashboard."""


def check_reason(reason: str) -> None:
    """UsageError for a reason that says nothing, or too much."""
    from eventmesh.operations.action_log import MOST_REASON

    if not 0 < len(reason.strip()) <= MOST_REASON:
        raise UsageError(
            f"Say why, in at most {MOST_REASON:,} characters, for whoever reads the log of "
            f'actions: --reason "the bank is back".'
        )


@asynccontextmanager
async def reached(name: str) -> AsyncIterator[tuple[Reach, Service]]:
    """A service, and the servers that this environment names, of which nothing is declared, made or
    migrated."""
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.clock import SystemClock
    from eventmesh.operations.reach import Reach
    from eventmesh.runtime.declaring.discovery import load_services

    settings = settings_of_command()
    [service] = load_services([name], Path.cwd())
    service.configure(settings)
    async with Reach([service], settings, SystemClock(), answer_timeout=SERVER_TIMEOUT) as reach:
        log_actions(settings, is_recorded=service.needs_database)
        yield reach, service


def log_actions(settings: Settings, *, is_recorded: bool) -> None:
    """Log to standard error: what a command does only where that is not recorded in a database,
    because its answer tells it already; and warnings."""
    from eventmesh.observability.logs import configure_logs

    level = "warning" if is_recorded else "info"
    configure_logs(settings.model_copy(update={"log_level": level}))
