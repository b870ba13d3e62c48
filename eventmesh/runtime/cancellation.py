"""Cancellations that were not meant for us: a library cancels what a handler awaits, and the
CancelledError comes through. Unnoticed, it would end a task that nobody wanted to end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Leaked(Exception):
    """Something that was awaited had been cancelled; this task had not."""


@contextmanager
def leaks_caught() -> Iterator[None]:
    """Raise Leaked for a CancelledError that does not come from cancelling this task."""
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Leaked("something that was awaited had been cancelled by somebody else") from error
