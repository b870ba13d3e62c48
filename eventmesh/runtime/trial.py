"""Before a reload: whether the new code would start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog


async def would_start(trial: Sequence[str]) -> bool:
    """Run a command that exits with 0 if the current code can start, and log if it does not.

    The command prints the error itself.
    """
    process = await asyncio.create_subprocess_exec(*trial, start_new_session=True)
    if await process.wait() == 0:
        return True
    structlog.get_logger("eventmesh.worker").error("reload skipped, new code does not start")
    return False
