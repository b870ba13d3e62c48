"""Bulk actions: they go on while nobody looks, and tell how far they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from eventmesh.dashboard.selections import Selection, Shelf
from eventmesh.errors import EventMeshError
from eventmesh.operations.action_log import recorded
from eventmesh.operations.dead_letters import (
    AT_ONCE,
    Deed,
    LetterSummary,
    act_on_letters,
    action_on_letters,
)
from eventmesh.operations.reach import Reach
from eventmesh.runtime.declaring.handler import Handler


@dataclass(slots=True)
class Job:
    """A bulk action. `tried` have been asked of the broker, `done` were there."""

    who: str
    deed: Deed
    reason: str
    selection: Selection
    tried: int = 0
    done: int = 0
    problem: str | None = None
    has_ended: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def letters(self) -> Sequence[LetterSummary]:
        return self.selection.letters

    @property
    def total(self) -> int:
        return len(self.letters)

    @property
    def missing(self) -> int:
        """How many were not there any more: somebody else had acted on them."""
        return self.tried - self.done


class Jobs:
    """Runs the bulk actions of this process."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._shelf: Shelf[Job] = Shelf()
        self._running: set[asyncio.Task[None]] = set()

    def find(self, job_id: str | None) -> Job | None:
        return self._shelf.get(job_id)

    def begin(self, job: Job, handler: Handler) -> str:
        """Run the job; returns its id."""
        job_id = self._shelf.put(job)
        task = asyncio.ensure_future(self._run(job, handler))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return job_id

    async def wait(self, job: Job, seconds: float, until: Callable[[Job], bool]) -> None:
        """Return when the condition is true of the job, or after some seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not until(job):
                    job._changed.clear()
                    await job._changed.wait()
        except TimeoutError:
            return

    async def close(self) -> None:
        """Stop the jobs. What each has done is recorded."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _run(self, job: Job, handler: Handler) -> None:
        ids = job.selection.ids
        action = action_on_letters(job.selection.subscription, job.deed, job.who, job.reason, ids)
        try:
            async with recorded(self._reach, action) as recording:
                try:
                    for begin in range(0, len(ids), AT_ONCE):
                        some = ids[begin : begin + AT_ONCE]
                        done = await act_on_letters(self._reach, handler, job.deed, some)
                        job.tried += len(some)
                        job.done += len(done)
                        job._changed.set()
                finally:
                    recording.outcome = outcome(job)
        except EventMeshError as error:
            job.problem = str(error)
        except Exception as error:  # noqa: BLE001  # a bug, shown on the page and logged
            job.problem = f"an error of the dashboard, which is in its log: {type(error).__name__}"
            structlog.get_logger("eventmesh.dashboard").exception("bulk action failed")
        finally:
            job.has_ended = True
            job._changed.set()


def outcome(job: Job) -> str:
    """What was done, in words."""
    past = "replayed" if job.deed == "replay" else "discarded"
    words = f"{job.done:,} of {job.total:,} {past}"
    if job.missing:
        words += f"; {job.missing:,} were not there any more"
    if job.tried < job.total:
        words += f"; {job.total - job.tried:,} not tried"
    return words
