"""Opening a channel while the connection is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiormq import Connection
from aiormq.exceptions import ChannelAccessRefused

from eventmesh.errors import Unreachable
from eventmesh.transports.base import TransportOptions
from eventmesh.transports.rabbitmq.connection import BrokerConnection


class _LostConnection:
    """Closes while a channel is being opened; opening the channel fails only after that."""

    def __init__(self) -> None:
        self.closing = asyncio.get_running_loop().create_future()

    async def open_channel(self, **_: Any) -> None:
        self.closing.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            raise ConnectionResetError("reset by peer")


async def test_opening_a_channel_on_a_lost_connection_raises_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    connection = BrokerConnection("amqp://127.0.0.1:1", "test", TransportOptions())

    async def connected() -> Connection:
        return cast(Connection, _LostConnection())

    monkeypatch.setattr(connection, "_connected", connected)
    with pytest.raises(Unreachable, match="reset by peer"):
        async with connection.guard():
            await connection.open_channel()
    await asyncio.sleep(0)  # the channel's task ends after the call
    await asyncio.sleep(0)

    assert unhandled == []


def test_a_missing_right_is_not_taken_for_a_wrong_url() -> None:
    connection = BrokerConnection("amqp://app:s3cr3t@h/", "publishing", TransportOptions())
    why = "ACCESS_REFUSED - write access to exchange 'p.events' in vhost '/' refused for user 'app'"
    error = connection._unreachable(ChannelAccessRefused(why))
    assert why in str(error)
    assert str(error).endswith("Give its user this right, as by `rabbitmqctl set_permissions`.")
