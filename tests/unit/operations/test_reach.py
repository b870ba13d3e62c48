"""Questions that are asked at the same time share what is open, and not each other's failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventmesh.clock import SystemClock
from eventmesh.errors import Busy, Unreachable
from eventmesh.operations.reach import Reach
from eventmesh.runtime.declaring.settings import Settings
from eventmesh.transports.base import Subscription, TransportOptions
from eventmesh.transports.factory import open_transport

PAID = Subscription("orders.note_payment", ("payments.paid",))


@pytest.fixture
async def reach(tmp_path: Path) -> AsyncIterator[Reach]:
    url = f"sqlite:///{tmp_path / 'broker.db'}"
    async with open_transport(url, SystemClock(), TransportOptions()) as transport:
        await transport.declare([PAID])
    async with Reach([], Settings(broker_url=url), SystemClock()) as opened:
        yield opened


async def test_a_question_that_fails_does_not_interrupt_the_others(reach: Reach) -> None:
    async with reach.broker() as used:
        for _ in range(2):
            with pytest.raises(Unreachable, match="away"):
                async with reach.broker():
                    raise Unreachable("away")
            assert (await used.stats(PAID)).ready == 0
        async with reach.broker() as another:
            assert another is not used
            assert (await another.stats(PAID)).ready == 0
    with pytest.raises(Unreachable):
        await used.stats(PAID)


async def test_a_connection_is_kept_where_somebody_else_is_at_work_on_what_was_asked_for(
    reach: Reach,
) -> None:
    async with reach.broker() as first:
        pass
    with pytest.raises(Busy):
        async with reach.broker():
            raise Busy("another process is counting")
    async with reach.broker() as second:
        assert second is first
        assert (await second.stats(PAID)).ready == 0
