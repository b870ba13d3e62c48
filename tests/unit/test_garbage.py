"""When a worker's process looks for garbage."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from eventmesh.cli.garbage import YOUNG, exempt_what_is_there, none_collected


@pytest.fixture(autouse=True)
def thresholds_as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)


def test_nothing_is_looked_at_while_code_is_imported() -> None:
    with none_collected():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0


async def test_new_objects_are_looked_at_less_often_once_a_worker_is_ready() -> None:
    gc.set_threshold(700, 10, 10)
    ready = asyncio.Event()
    exempting = asyncio.create_task(exempt_what_is_there(ready))
    await asyncio.sleep(0)
    assert gc.get_threshold() == (700, 10, 10)
    ready.set()
    await exempting
    assert gc.get_threshold() == (YOUNG, 10, 10)
    assert gc.get_freeze_count() > 0
