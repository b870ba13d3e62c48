"""Awaiting something in a context of its own, within the same task.

A handler may set context variables: the tenant that it works for, or fields for its log lines. All
handlers of a lane run in one task, so these would stay set for every later message. A task for each
call would have a context of its own, but costs more than all else that is done for a message.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from contextvars import copy_context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class InOwnContext(Generic[T]):
    """Awaits this in a copy of the current context: what it sets is gone when it has ended."""

    __slots__ = ("_run", "_steps", "cr_await")

    def __init__(self, awaitable: Awaitable[T]) -> None:
        self.cr_await = awaitable
        """What this waits for, under the name that coroutines have for it, so that whoever looks
        for where a task waits finds it."""
        self._steps = awaitable.__await__()
        self._run = copy_context().run

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> InOwnContext[T]:
        return self

    def __next__(self) -> Any:
        return self._run(self._steps.send, None)

    def send(self, value: Any) -> Any:
        return self._run(self._steps.send, value)

    def throw(self, *error: Any) -> Any:
        return self._run(self._steps.throw, *error)

    def close(self) -> None:
        self._run(self._steps.close)
