"""When objects are collected: never while a mesh runs, because that would run clean-up code at
moments that differ from run to run.

The objects of a mesh refer to each other, so that only the collector frees them. After a lone run,
it looks at all that is new. Among many runs, that would take longer each time: what the first runs
have compiled and cached stays, and is looked at again. So only objects that are younger than the
last collection are looked at between two runs, and after every 16th all that came since the first.
"""

from __future__ import annotations

import gc
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sqlalchemy.exc import SAWarning

_ALL_EVERY = 16
_YOUNG, _ALL = 0, 2  # generations

_IS_BETWEEN_RUNS: ContextVar[bool] = ContextVar("eventmesh_collected_between_runs", default=False)
"""Whether somebody collects what runs have left, between them."""


@contextmanager
def collected_between_runs() -> Iterator[Callable[[], None]]:
    """While the context is open, objects are collected only by the function that it gives. Call it
    between two runs, when nothing refers to the mesh of the last one any more."""
    calls = itertools.count(1)

    def collect() -> None:
        _collect(_YOUNG if next(calls) % _ALL_EVERY else _ALL)

    gc.collect()
    token = _IS_BETWEEN_RUNS.set(True)
    try:
        with _no_collection():
            yield collect
    finally:
        _IS_BETWEEN_RUNS.reset(token)


@contextmanager
def collected_afterwards() -> Iterator[None]:
    """While the context is open, nothing is collected; what is new is at its end, unless that is
    done between runs."""
    if _IS_BETWEEN_RUNS.get():
        yield
        return
    with _no_collection():
        try:
            yield
        finally:
            _collect(_ALL)


@contextmanager
def _no_collection() -> Iterator[None]:
    """While the context is open, objects are collected by calls only, and what was there before
    is not looked at."""
    was_on, is_frozen = gc.isenabled(), gc.get_freeze_count() > 0
    gc.disable()
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


def _collect(generation: int) -> None:
    with warnings.catch_warnings():
        # Connections of processes that were killed, which had no time to return them.
        warnings.filterwarnings("ignore", ".*non-checked-in connection", SAWarning)
        gc.collect(generation)
