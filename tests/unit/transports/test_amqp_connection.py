"""A channel that opens while its connection is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiormq import Connection

from eventmesh.errors import Unreachable
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.rabbitmq.connection import Link


class _LosesIt:
    """A connection that closes while a channel opens, which fails only after that."""

    def __init__(self) -> None:
        self.closing = asyncio.get_running_loop().create_future()

    async def channel(self, **_: Any) -> None:
        self.closing.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionResetError("reset by peer")


async def test_who_opens_a_channel_hears_of_the_loss_and_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    untold: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: untold.append(context))
    link = Link("amqp://127.0.0.1:1", "test", TransportOptions())

    async def connected() -> Connection:
        return cast(Connection, _LosesIt())

    monkeypatch.setattr(link, "_connected", connected)
    with pytest.raises(Unreachable, match="the connection was lost"):
        async with link.call():
            await link.new_channel()
    await asyncio.sleep(0)  # the channel's task ends after the call
    await asyncio.sleep(0)

    assert untold == []
