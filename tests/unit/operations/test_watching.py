"""`eventmesh status --watch` at a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from eventmesh.cli import status
from eventmesh.clock import SystemClock
from eventmesh.operations.reach import Reach
from eventmesh.runtime.declaring.service import DeclaredService
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.memory import MemoryTransport


class EnoughSeen(Exception):
    """Ctrl-C of the test."""


class CountedClock(SystemClock):
    """Its user waits twice and then interrupts."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        if len(self.waits) == 3:
            raise EnoughSeen


async def test_a_terminal_shows_one_screen_that_is_refreshed_and_then_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, clock = io.StringIO(), CountedClock()
    terminal = Console(file=out, force_terminal=True, width=100, height=30)
    monkeypatch.setattr(status, "console", lambda: terminal)
    service, transport = DeclaredService("bank"), MemoryTransport(clock)
    settings = Settings(broker_url="memory://")
    async with Reach([service], settings, clock, transport) as reach:
        with pytest.raises(EnoughSeen):
            await status._watch(reach, clock, 2.5, as_json=False)
    assert clock.waits == [2.5, 2.5, 2.5]
    assert out.getvalue().count("broker memory://") >= 3
    entered, left = "\x1b[?1049h", "\x1b[?1049l"
    assert out.getvalue().count(entered) == out.getvalue().count(left) == 1
