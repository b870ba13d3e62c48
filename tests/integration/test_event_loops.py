"""A service in a program that has several event loops, one after another or at the same time."""

from __future__ import annotations

import asyncio
import gc

import pytest
from sqlalchemy import select

from eventmesh import Event, Service, Settings
from eventmesh.errors import UsageError
from eventmesh.persistence.tables import outbox
from tests.support.own_loop import run_on_own_loop


class Placed(Event, name="shop.placed", version=1, key="key"):
    key: str


class Shop:
    """A program that publishes."""

    def __init__(self, url: str) -> None:
        self.service = Service("shop")
        self.service.configure(Settings(database_urls={"shop": url}))
        self.placed = self.service.publisher(Placed)

    async def publish(self, key: str) -> None:
        await self.placed.publish(Placed(key=key))

    async def publish_and_close(self, key: str) -> None:
        async with self.service:
            await self.publish(key)

    async def keys(self) -> list[str | None]:
        async with (await self.service.database()).connection() as connection:
            return list(await connection.scalars(select(outbox.c.key).order_by(outbox.c.seq)))


@pytest.fixture
def shop(database_url: str) -> Shop:
    return Shop(database_url)


# Connections to a server cannot be closed any more once their loop is, and drivers warn of that.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_program_may_publish_in_one_event_loop_after_another(shop: Shop) -> None:
    for number in range(3):
        run_on_own_loop(lambda number=number: shop.publish(f"k{number}"))
    assert await shop.keys() == ["k0", "k1", "k2"]
    await shop.service.close()
    gc.collect()


async def test_a_service_that_is_open_in_another_event_loop_is_an_error_that_says_what_to_write(
    shop: Shop,
) -> None:
    """And it stays open there."""
    async with shop.service:
        for publish in (shop.publish, shop.publish_and_close):
            with pytest.raises(UsageError, match=r"'shop' is open in another event loop.*join\("):
                run_on_own_loop(lambda publish=publish: publish("elsewhere"))
        with pytest.raises(UsageError, match="another event loop"):
            run_on_own_loop(shop.service.close)
        await shop.publish("here")
        assert await shop.keys() == ["here"]


async def test_of_threads_that_open_a_service_at_the_same_time_one_gets_it(shop: Shop) -> None:
    """The others get the error, or the service if it was closed by then; nobody waits for ever."""

    def publish(number: int) -> bool:
        try:
            asyncio.run(shop.publish_and_close(str(number)))
        except UsageError:
            return False
        return True

    async with asyncio.timeout(60):
        published = await asyncio.gather(*(asyncio.to_thread(publish, each) for each in range(4)))
    keys = await shop.keys()
    assert sorted(keys, key=str) == [str(each) for each in range(4) if published[each]]
    assert keys
    await shop.service.close()
