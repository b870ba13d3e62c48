"""Cancellations that a library let escape.

A library that a handler uses may cancel one of its own tasks and let the CancelledError come out of
what the handler awaits. Nobody asked our task to end, but it would: silently, and with it a whole
subscription. Such an error is therefore turned into an ordinary exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class LeakedCancellation(Exception):
    """Something that was awaited had been cancelled, although this task was not."""


@contextmanager
def leaked_cancellations_raised() -> Iterator[None]:
    """Raise LeakedCancellation for a CancelledError that is not due to cancelling this task."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise LeakedCancellation("something that was awaited had been cancelled") from error
