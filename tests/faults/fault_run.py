"""One run of the system through a fault: messages come in before, during and after it.

`run_through_fault` returns a row with the effects and the recovery time; `check` fails the test
unless every message has taken effect exactly once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.effects import DatabaseAway
from tests.faults.faults import Fault
from tests.faults.report import Row
from tests.faults.system_under_test import MOST_WARNINGS, SystemUnderTest
from tests.support.promised_times import allowed

STOP_TIMEOUT = 60.0
"""Seconds within which a fault that stops all effects has done so, on any machine."""


async def run_through_fault(system: SystemUnderTest, fault: Fault, amount: int, hold: float) -> Row:
    """Run workers through a fault; returns the result for `check`."""
    over = asyncio.Event()
    async with system.working(*fault.options, processes=fault.processes, exit_code=fault.exit_code):
        async with feeding(system, amount, over):
            await system.until_effects(amount // 10)
            async with fault.make(system):
                await hold_fault(system, fault, hold)
            ended = time.time()
            over.set()
            recovery = await system.recovery(ended, fault.within)
        await system.until_all_effects()
        settled = time.time() - ended
    return await verdict(system, fault, recovery, settled)


async def hold_fault(system: SystemUnderTest, fault: Fault, hold: float) -> None:
    """Wait for as long as the fault lasts. A fault that stops all effects lasts until it has: on a
    slow machine, messages that were in progress take effect a little later."""
    deadline = time.monotonic() + STOP_TIMEOUT
    await asyncio.sleep(hold / 2)
    while True:
        before = await effects_so_far(system)
        await asyncio.sleep(hold / 2)
        if not fault.stops or before == await effects_so_far(system):
            return
        assert time.monotonic() < deadline, "the fault has no effect, so this test proves nothing"


@asynccontextmanager
async def feeding(system: SystemUnderTest, amount: int, over: asyncio.Event) -> AsyncIterator[None]:
    """Messages come in while the body runs; on leaving, all of them have been sent."""
    task = asyncio.ensure_future(system.feed(amount, over))
    try:
        yield
    finally:
        over.set()
        await task


async def effects_so_far(system: SystemUnderTest) -> int | None:
    """The number of effects; None while the database is away."""
    try:
        return await system.effects.count()
    except DatabaseAway:
        return None


async def verdict(system: SystemUnderTest, fault: Fault, recovery: float, settled: float) -> Row:
    """The result of a run."""
    account, promised = await system.account(), fault.ordered(system.endpoints.broker)
    return Row(
        fault=fault.name,
        broker=system.endpoints.broker,
        database=system.endpoints.database,
        account=account,
        order_promised=promised,
        recovery=recovery,
        within=fault.within,
        settled=settled,
        warnings=system.warnings_per_second(),
    )


def check(system: SystemUnderTest, row: Row) -> None:
    """Fail unless every message has taken effect once in each subscription, in order where that is
    promised, soon after the fault, without a retry of a handler and without a flood of warnings."""
    assert (row.account.lost, row.account.doubled) == (0, 0), row
    assert row.account.effects == 2 * row.account.asked, row
    assert row.account.in_order or not row.order_promised, row
    assert row.recovery < allowed(row.within), (row, system.output())
    assert row.warnings <= MOST_WARNINGS, row
    blamed = {
        "message will be retried",
        "message dead-lettered",
        "message rejected by broker",
    } & system.events().keys()
    assert not blamed, (blamed, system.output())
