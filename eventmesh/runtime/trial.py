"""Before code is loaded anew: whether it would start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog


async def would_start(trial: Sequence[str]) -> bool:
    """Run a command that ends with 0 where the code as it is now could be run; tell when it could
    not, after what the command itself has said."""
    process = await asyncio.create_subprocess_exec(*trial, start_new_session=True)
    if await process.wait() == 0:
        return True
    structlog.get_logger("eventmesh.worker").error(
        "not reloaded: the code as it is now does not start"
    )
    return False
