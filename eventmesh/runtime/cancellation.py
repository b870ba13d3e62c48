"""Cancellations that a library let escape.

A library that a handler uses may cancel one of its own tasks and let the CancelledError come out of
what the handler awaits. Nobody asked our task to end, but it would: silently, and with it a whole
subscription. Such an error is therefore turned into an ordinary exception.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from types import TracebackType


class LeakedCancellation(Exception):
    """Something that was awaited had been cancelled, although this task was not."""


def leaked_cancellations_raised() -> AbstractContextManager[None]:
    """Raise LeakedCancellation for a CancelledError that is not due to cancelling this task."""
    return _LEAKED_CANCELLATIONS_RAISED


class _LeakedCancellationsRaised(AbstractContextManager[None]):
    """Without a state, so that one does for all: it is entered for each message."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise LeakedCancellation("something that was awaited had been cancelled") from error


_LEAKED_CANCELLATIONS_RAISED = _LeakedCancellationsRaised()
