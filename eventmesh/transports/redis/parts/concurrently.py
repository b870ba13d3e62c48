"""Asking all parts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from eventmesh.errors import Unreachable

T = TypeVar("T")


async def concurrently(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, once all have ended. If some have failed, the first error is raised; one that
    is not Unreachable comes first, because it is a bug or a mistake in a setting."""
    if len(work) == 1:
        return [await work[0]]
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Unreachable))
    return [result for result in results if not isinstance(result, BaseException)]
