"""The clock on the wall jumps by hours, forward and back, while messages come in."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.faults import clocked_worker
from tests.faults.conftest import At, Record
from tests.faults.fault_run import check, run_through_fault
from tests.faults.faults import Fault, Make, a_few_effects
from tests.faults.system_under_test import SystemUnderTest

HOURS = 3600.0
JUMPS = (0.0, 5 * HOURS, -3 * HOURS, 2 * HOURS)
"""Where the clock is, one after the other, before it is put right."""


def jumps(to: tuple[float, ...], file: Path) -> Make:
    @asynccontextmanager
    async def fault(system: SystemUnderTest) -> AsyncIterator[None]:
        for seconds in to:
            set_clock(file, seconds)
            await a_few_effects(system)
        yield
        set_clock(file, 0)

    return fault


def set_clock(file: Path, seconds: float) -> None:
    new = file.with_suffix(".new")
    new.write_text(str(seconds))
    new.rename(file)  # at once: a reader finds the one or the other


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "broker",
    ["sqlite", *(pytest.param(name, marks=pytest.mark.soak) for name in ("redis", "amqp"))],
)
async def test_a_clock_that_jumps_changes_nothing(
    broker: str, database: str, at: At, record: Record, tmp_path: Path, amount: int
) -> None:
    file = tmp_path / "clock"
    set_clock(file, 0)
    fault = Fault("clock jumps by hours", jumps(JUMPS, file), exit_code=-15)
    async with at(broker, database) as system:
        system.command = (sys.executable, str(clocked_worker.__file__), str(file))
        row = await run_through_fault(system, fault, amount, hold=0.1)
        record(row)
        check(system, row)


@pytest.mark.parametrize("broker", ["sqlite"])
async def test_what_a_worker_held_whose_clock_was_ahead_comes_soon(
    broker: str, at: At, record: Record, tmp_path: Path, amount: int
) -> None:
    """It was killed while its clock was ahead; the clock of its successor is right."""
    file = tmp_path / "clock"
    set_clock(file, 5 * HOURS)
    async with at(broker, "sqlite") as system:
        system.command = (sys.executable, str(clocked_worker.__file__), str(file))
        await system.until_ready(system.start_worker())
        await system.ask(amount)
        await system.until_effects(amount // 10)
        system.workers[-1].kill()
        set_clock(file, 0)
        system.command = ()
        began = time.monotonic()
        async with system.working():
            await system.until_all_effects()
        print(f"all in {time.monotonic() - began:.1f} s")  # noqa: T201
        account = await system.account()
        assert (account.lost, account.doubled) == (0, 0)
