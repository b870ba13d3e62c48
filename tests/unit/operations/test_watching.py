"""`eventmesh status --watch` at a terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console
from rich.text import Text

from eventmesh.cli import status
from eventmesh.clock import SystemClock
from eventmesh.operations import status as measuring
from eventmesh.operations.reach import Reach
from eventmesh.operations.status import BrokerStatus, MeshStatus, SubscriptionStatus
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


@pytest.mark.parametrize("height", [24, 60])
async def test_a_problem_is_in_view_and_lines_without_room_are_counted(
    monkeypatch: pytest.MonkeyPatch, height: int
) -> None:
    problem = "RabbitMQ at amqp://r does not answer"
    rows = [
        SubscriptionStatus("bank", f"bank.h{number}", (), unknown={"ready": problem})
        for number in range(30)
    ]
    broker = BrokerStatus("amqp://r", problem=problem)
    found = MeshStatus(datetime(2026, 11, 29, tzinfo=UTC), broker, tuple(rows), (), ())

    async def measured(_reach: Reach) -> MeshStatus:
        return found

    out, clock = io.StringIO(), CountedClock()
    terminal = Console(file=out, force_terminal=True, width=80, height=height)
    monkeypatch.setattr(status, "console", lambda: terminal)
    monkeypatch.setattr(measuring, "mesh_status", measured)
    async with Reach([DeclaredService("bank")], Settings(), clock) as reach:
        with pytest.raises(EnoughSeen):
            await status._watch(reach, clock, 2.5, as_json=False)
    screen = out.getvalue().rpartition("\x1b[H")[2].partition("\x1b[?1049l")[0]
    lines = [line.rstrip() for line in Text.from_ansi(screen).plain.splitlines()]
    assert len(lines) <= height
    assert problem in " ".join(lines[:5])
    shown = sum(line.startswith("bank.h") for line in lines)
    if height == 24:
        # Below the rows that do not fit are a blank line and the heading of the outboxes.
        more = f"… {30 - shown + 2} more lines: make the window higher, or name services"
        assert (lines[-1], shown > 10) == (more, True)
    else:
        assert (shown, "more lines" in screen) == (30, False)
