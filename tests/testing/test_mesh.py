"""A mesh in virtual time: what services do in it is what they do in production, only faster."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from eventmesh import Event, Service, Transaction
from eventmesh.errors import UsageError
from eventmesh.testing.mesh import Mesh
from eventmesh.testing.mesh.databases import temporary_workshop
from eventmesh.testing.mesh.running import make_mesh, run
from services.inventory.models import Stock
from services.inventory.service import service as inventory
from services.orders.contracts import CapturePayment, OrderCancelled, OrderClosed, OrderPlaced
from services.orders.saga import fulfil
from services.orders.service import service as orders
from services.payments.service import service as payments
from services.shipping.service import service as shipping

ORDER = UUID(int=1)


def order(amount: int = 20) -> OrderPlaced:
    return OrderPlaced(
        order_id=ORDER, card="4000-0000-0000-0001", sku="book", quantity=1, amount=Decimal(amount)
    )


async def start_shop(mesh: Mesh, workers: int = 1) -> None:
    await mesh.start(orders, payments, inventory, shipping, workers=workers)
    async with mesh.session(inventory) as session:
        session.add(Stock(sku="book"))


async def test_a_purchase_goes_through_four_services_in_no_time(mesh: Mesh) -> None:
    await start_shop(mesh)
    await mesh.publish(order())
    await mesh.quiet()
    assert mesh.published(OrderClosed) == [OrderClosed(order_id=ORDER)]
    assert (await mesh.saga(fulfil, key=ORDER)).status == "completed"
    assert mesh.dead_letters() == []


async def test_two_days_pass_until_nobody_has_approved(mesh: Mesh) -> None:
    await start_shop(mesh)
    await mesh.publish(order(amount=150))
    await mesh.quiet()
    assert (await mesh.saga(fulfil, key=ORDER)).status == "running"
    await mesh.advance("1d")
    assert mesh.published(OrderCancelled) == []
    await mesh.advance("25h")
    assert mesh.expect(OrderCancelled, order_id=ORDER).reason.startswith("no answer within")
    async with mesh.session(inventory) as session:
        assert (await session.get_one(Stock, "book")).on_hand == 200


async def test_the_wall_clock_is_the_virtual_one(mesh: Mesh) -> None:
    assert datetime.now(UTC) == mesh.now == datetime(2026, 1, 1, tzinfo=UTC)
    await mesh.advance("36h")
    assert datetime.now(UTC) == mesh.now == datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("new_york")
def test_local_times_are_those_of_the_machine_s_time_zone() -> None:
    found: list[datetime] = []

    async def body() -> None:
        found.append(datetime.now())
        await mesh.advance("1d")
        found.append(datetime.now())

    with temporary_workshop() as workshop:
        mesh = make_mesh(workshop)
        run(mesh, body)
    assert found == [datetime(2025, 12, 31, 19), datetime(2026, 1, 1, 19)]


async def test_a_worker_that_is_killed_loses_nothing_and_does_nothing_twice(mesh: Mesh) -> None:
    await start_shop(mesh, workers=2)
    await mesh.publish(order())
    await mesh.kill(payments)
    await mesh.kill(orders)
    await mesh.quiet()
    await mesh.advance("1m")
    assert mesh.published(OrderClosed) == [OrderClosed(order_id=ORDER)]
    assert len(mesh.published(CapturePayment)) == 1


async def test_what_did_not_happen_fails_with_the_story_of_what_did(mesh: Mesh) -> None:
    await start_shop(mesh)
    await mesh.publish(order())
    await mesh.quiet()
    with pytest.raises(AssertionError) as failure:
        mesh.expect(OrderCancelled, order_id=ORDER)
    assert f"OrderCancelled(order_id={ORDER!r}) was not published: one was expected." in str(
        failure.value
    )
    assert "order_closed #" in str(failure.value)
    with pytest.raises(AssertionError, match=r"was not published, and 1 with other values: one"):
        mesh.expect(OrderClosed, order_id=uuid4())
    with pytest.raises(UsageError, match=r"OrderClosed has no field 'order', but these: order_id"):
        mesh.expect(OrderClosed, order=ORDER)


async def test_the_story_names_what_nobody_has_taken(mesh: Mesh) -> None:
    await mesh.publish(order())
    await mesh.quiet()
    assert mesh.story().endswith("published, and taken by nobody: order_placed #1")
    await mesh.start(orders, payments, inventory, shipping)
    await mesh.quiet()
    assert "taken by nobody" not in mesh.story()


class Counted(Event, name="tills.counted", version=1):
    number: int


def make_till(counted: list[int]) -> Service:
    till = Service("tills")
    till.publisher(Counted)

    @till.subscriber(Counted)
    async def count(event: Counted, tx: Transaction) -> None:
        counted.append(event.number)

    return till


async def test_another_version_of_a_service_is_started_on_its_database(mesh: Mesh) -> None:
    by_old, by_new = list[int](), list[int]()
    await mesh.start(make_till(by_old))
    known = await mesh.publish(Counted(number=1))
    await mesh.quiet()
    await mesh.drain()
    await mesh.start(make_till(by_new))
    await mesh.put(mesh.record.published[known])  # which the inbox has
    await mesh.publish(Counted(number=2))
    await mesh.quiet()
    assert (by_old, by_new) == ([1], [2])


async def test_what_is_published_must_be_a_message(mesh: Mesh) -> None:
    number: Any = 3
    with pytest.raises(UsageError, match=r"^An int is not a message"):
        await mesh.publish(number)


async def test_a_module_instead_of_its_service_is_named(mesh: Mesh) -> None:
    module: Any = sys.modules["services.orders.service"]
    with pytest.raises(UsageError, match=r"was given <module .*>: pass a Service"):
        await mesh.start(module)
