"""What the log says of an action that did not come to its end."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, nullcontext

import pytest
from structlog.testing import capture_logs

from eventmesh import Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.operations.action_log import Action, recorded
from eventmesh.operations.reach import Reach

ACTION = Action("web", "ada", "discard dead letters", "web.look", "not needed", {})


@pytest.mark.parametrize(
    ("so_far", "error", "expected"),
    [
        ("", None, "done"),
        ("2 of 2 discarded", None, "2 of 2 discarded"),
        ("", asyncio.CancelledError(), "interrupted"),
        ("1 of 2 discarded", asyncio.CancelledError(), "1 of 2 discarded; interrupted"),
        ("1 of 2 discarded", OSError("full"), "1 of 2 discarded; failed: full"),
        ("", TimeoutError(), "failed: TimeoutError"),
    ],
    ids=["done", "in words", "interrupted", "interrupted in the middle", "failed", "no words"],
)
async def test_the_outcome_tells_what_was_done_and_why_no_more(
    so_far: str, error: BaseException | None, expected: str
) -> None:
    async with Reach([Service("web")], Settings(), SystemClock()) as reach:
        with capture_logs() as logs, raises(error):
            async with recorded(reach, ACTION) as recording:
                recording.outcome = so_far
                if error is not None:
                    raise error
    assert [log["outcome"] for log in logs if "outcome" in log] == [expected]


def raises(error: BaseException | None) -> AbstractContextManager[object]:
    return nullcontext() if error is None else pytest.raises(type(error))
