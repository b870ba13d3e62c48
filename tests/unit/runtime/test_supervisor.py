"""A supervisor whose first worker cannot start: the others, which would fail alike, never begin."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import Process

import pytest

from eventmesh.clock import SystemClock
from eventmesh.runtime.supervisor import Supervisor

TURNS = 200
"""Of the event loop: more than the start of another worker would take."""


async def test_a_worker_that_cannot_start_is_the_only_one_however_late_its_end_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait = Process.wait

    async def wait_and_notice_late(process: Process) -> int:
        code = await wait(process)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return code

    monkeypatch.setattr(Process, "wait", wait_and_notice_late)
    started: list[int] = []

    def unreachable(number: int, _ready_descriptor: int) -> list[str]:
        started.append(number)
        return ["sh", "-c", "exit 3"]

    supervisor = Supervisor(
        unreachable, ["true"], workers=2, drain_timeout=30.0, clock=SystemClock()
    )
    assert await supervisor.run() == 3
    assert started == [0]
