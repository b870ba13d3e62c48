"""Runs a coroutine from where no event loop may be started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_on_own_loop(make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run a coroutine on an event loop in a thread, and wait for it: this thread may have one that
    is running, or one that pytest-asyncio keeps."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(make())).result()
