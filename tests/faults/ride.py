"""One ride through a fault: messages before, while it lasts and after, and what became of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.effects import DatabaseAway
from tests.faults.faults import Fault
from tests.faults.mesh import MOST_WARNINGS, Mesh
from tests.faults.report import Row

STOP_PATIENCE = 10.0
"""Seconds within which a fault that stops the work has stopped it."""


async def ride_out(mesh: Mesh, fault: Fault, amount: int, hold: float) -> Row:
    """Run workers through a fault; returns what it came to, for `check` to judge."""
    over = asyncio.Event()
    async with mesh.working(*fault.options, processes=fault.processes, exit_code=fault.exit_code):
        async with feeding(mesh, amount, over):
            await mesh.until_effects(amount // 10)
            async with fault.make(mesh):
                await outlast(mesh, fault, hold)
            ended = time.time()
            over.set()
            recovery = await mesh.recovery(ended, fault.within)
        await mesh.until_all_effects()
        settled = time.time() - ended
    return await verdict(mesh, fault, recovery, settled)


async def outlast(mesh: Mesh, fault: Fault, hold: float) -> None:
    """Wait for as long as the fault is to last. One that stops the work lasts until it has: on a
    slow machine, what was under way takes effect a little later."""
    deadline = time.monotonic() + STOP_PATIENCE
    await asyncio.sleep(hold / 2)
    while True:
        before = await effects_so_far(mesh)
        await asyncio.sleep(hold / 2)
        if not fault.stops or before == await effects_so_far(mesh):
            return
        assert time.monotonic() < deadline, "the fault does no harm: this proves nothing"


@asynccontextmanager
async def feeding(mesh: Mesh, amount: int, over: asyncio.Event) -> AsyncIterator[None]:
    """Messages come in beside the body; on leaving, all of them have."""
    task = asyncio.ensure_future(mesh.feed(amount, over))
    try:
        yield
    finally:
        over.set()
        await task


async def effects_so_far(mesh: Mesh) -> int | None:
    """How many there are; None while the database is away."""
    try:
        return await mesh.effects.count()
    except DatabaseAway:
        return None


async def verdict(mesh: Mesh, fault: Fault, recovery: float, settled: float) -> Row:
    """What it came to."""
    account, promised = await mesh.account(), fault.ordered(mesh.place.broker)
    return Row(
        fault=fault.name,
        broker=mesh.place.broker,
        database=mesh.place.database,
        account=account,
        order_promised=promised,
        recovery=recovery,
        within=fault.within,
        settled=settled,
        warnings=mesh.warnings_per_second(),
    )


def check(mesh: Mesh, row: Row) -> None:
    """Fail unless every message has taken effect once in each subscription, in its order where that
    is promised, soon after the fault, with no handler blamed for it and no flood of warnings."""
    assert (row.account.lost, row.account.doubled) == (0, 0), row
    assert row.account.effects == 2 * row.account.asked, row
    assert row.account.in_order or not row.order_promised, row
    assert row.recovery < row.within, (row, mesh.said())
    assert row.warnings <= MOST_WARNINGS, row
    blamed = {
        "message will be retried",
        "message dead-lettered",
        "message rejected by broker",
    } & mesh.events().keys()
    assert not blamed, (blamed, mesh.said())
