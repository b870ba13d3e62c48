"""Operators' actions are recorded before they begin, and completed with their outcome.

The record is in the database of the service that is acted upon. If that cannot be written, the
action is not begun. A service without a database has its record in the log of the process.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from eventmesh.errors import EventMeshError
from eventmesh.operations.reach import Place, Reach
from eventmesh.persistence import actions
from eventmesh.persistence.actions import ActionRow

MOST_REASON = 1_000
"""Characters of a reason."""

LOGGED_IDS = 100
"""How many ids of messages, or of dead letters, the record of an action names."""


@dataclass(frozen=True, slots=True)
class Action:
    """What somebody is about to do, and why. `subject` is a subscription, a saga, or a service."""

    service: str
    who: str
    what: str
    subject: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


def operator_of_machine() -> str:
    """Who runs this process, as the machine knows them."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "unknown"


class Recording:
    """An action that goes on; set its `outcome` so far, in words for people."""

    outcome = ""


@asynccontextmanager
async def recorded(reach: Reach, action: Action) -> AsyncIterator[Recording]:
    """Record an action, which is the block, and its outcome or its error. Unreachable or Drift,
    before the block begins, where it cannot be recorded."""
    log = structlog.get_logger("eventmesh.operations").bind(
        who=action.who,
        what=action.what,
        service=action.service,
        subject=action.subject,
        reason=action.reason,
    )
    place = reach.place_of(action.service)
    number = None if place is None else await _begin(reach, place, action)
    log.info("operator acts", **action.details)
    recording = Recording()
    try:
        yield recording
    except BaseException as error:
        recording.outcome = "; ".join(filter(None, (recording.outcome, _ending(error))))
        raise
    finally:
        recording.outcome = recording.outcome or "done"
        log.info("operator has acted", outcome=recording.outcome)
        if place is not None and number is not None:
            try:
                async with reach.database(place) as database, database.connection() as connection:
                    await actions.end(connection, number, recording.outcome)
            except EventMeshError as error:  # the action is over, and what became of it is logged
                log.warning("outcome of an action not recorded", error=str(error))


def _ending(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "interrupted"
    return f"failed: {str(error) or type(error).__name__}"


async def _begin(reach: Reach, place: Place, action: Action) -> int:
    async with reach.database(place) as database, database.connection() as connection:
        return await actions.begin(
            connection,
            service=action.service,
            who=action.who,
            what=action.what,
            subject=action.subject,
            reason=action.reason,
            details=action.details,
        )


@dataclass(frozen=True, slots=True)
class ActionLog:
    """The newest actions of all databases, newest first; and why some are missing."""

    rows: tuple[ActionRow, ...]
    problems: tuple[str, ...]


async def newest_actions(reach: Reach, most: int) -> ActionLog:
    """The newest actions, `most` of each database. One that does not answer is a problem."""
    rows: list[ActionRow] = []
    problems: list[str] = []
    for place in reach.databases:
        try:
            async with reach.database(place) as database, database.reading() as connection:
                rows += await actions.newest(connection, place.services, most)
        except EventMeshError as error:
            problems.append(str(error))
    return ActionLog(tuple(sorted(rows, key=lambda row: row.at, reverse=True)), tuple(problems))
