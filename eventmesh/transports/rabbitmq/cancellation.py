"""A cancellation that meets an error of aiormq.

When the broker closes a channel, aiormq replaces the cancellation of a request on it by the error
that closed it. So a caller that expects this error, as of a queue that does not exist, would go on
although it was cancelled, and whoever cancelled it would wait for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiormq.exceptions import AMQPError
from pamqp.exceptions import PAMQPException

CONNECTION_ERRORS = (
    *(AMQPError, PAMQPException, OSError, EOFError),
    *(RuntimeError, StopAsyncIteration),
)
"""What aiormq raises when a connection or channel cannot be used."""


@contextmanager
def cancellation_first() -> Iterator[None]:
    """An error of aiormq within it becomes CancelledError if the task was cancelled meanwhile. A
    timeout is such a cancellation, and stays around it."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except CONNECTION_ERRORS as error:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
