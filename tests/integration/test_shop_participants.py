"""The shop's participants accept their commands twice, and an undo before what it undoes: a saga
that has waited too long sends both, and nobody orders messages of different subscriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from uuid import UUID

from sqlalchemy import select

from eventmesh import Event, Service, Settings
from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Message
from eventmesh.persistence import migration, tables
from eventmesh.persistence.database import Database
from eventmesh.wire.envelope import seal
from services.inventory import contracts as stock
from services.inventory import handlers as inventory
from services.inventory.models import OPENING_STOCK, Stock
from services.orders import approvals
from services.orders import handlers as orders
from services.orders.contracts import RequestApproval
from services.payments import contracts as money
from services.payments import handlers as payments
from services.payments.models import Card

ORDER = UUID(int=1)
RESERVE = stock.ReserveStock(order_id=ORDER, sku="cd", quantity=3)
RELEASE = stock.ReleaseStock(order_id=ORDER)
CAPTURE = money.CapturePayment(order_id=ORDER, card="c", amount=Decimal("9.99"))


@asynccontextmanager
async def closing(database: Database) -> AsyncIterator[Database]:
    """The database, closed on leaving."""
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def running(service: Service, url: str) -> AsyncIterator[Service]:
    """The service with its tables in this database."""
    async with closing(Database(url, service=service.name)) as database:
        await migration.upgrade(database, service.metadata)
    service.configure(Settings(database_urls={service.name: url}))
    async with service:
        yield service


async def reserve() -> Event:
    async with inventory.service.transaction() as tx:
        sealed = seal(RESERVE, source="orders", clock=SystemClock())
        return await inventory.reserve(RESERVE, sealed, tx)


async def release() -> Event:
    async with inventory.service.transaction() as tx:
        return await inventory.release(RELEASE, tx)


async def capture() -> Message:
    async with payments.service.transaction() as tx:
        return await payments.capture(
            CAPTURE, seal(CAPTURE, source="orders", clock=SystemClock()), tx
        )


async def on_hand() -> int | None:
    async with inventory.service.transaction() as tx:
        return await tx.session.scalar(select(Stock.on_hand).where(Stock.sku == "cd"))


async def test_a_release_that_comes_first_cancels_the_reserve_that_comes_later(
    database_url: str,
) -> None:
    async with running(inventory.service, database_url):
        assert await release() == stock.StockReleased(order_id=ORDER)
        assert await reserve() == stock.OutOfStock(order_id=ORDER, sku="cd")
        assert await on_hand() == OPENING_STOCK
        assert await release() == stock.StockReleased(order_id=ORDER)


async def test_stock_is_reserved_and_released_once_however_often_it_is_asked_for(
    database_url: str,
) -> None:
    reserved = stock.StockReserved(order_id=ORDER, sku="cd", quantity=3)
    async with running(inventory.service, database_url):
        assert [await reserve(), await reserve()] == [reserved, reserved]
        assert await on_hand() == OPENING_STOCK - 3
        await release()
        await release()
        assert await on_hand() == OPENING_STOCK
        assert await reserve() == stock.OutOfStock(order_id=ORDER, sku="cd")


async def test_an_order_is_paid_once_and_refunded_once(database_url: str) -> None:
    async with running(payments.service, database_url):
        first, second = await capture(), await capture()
        assert first == second
        assert isinstance(first, money.PaymentCaptured)
        refund = money.RefundPayment(order_id=ORDER, payment_id=first.payment_id)
        for _ in range(2):
            async with payments.service.transaction() as tx:
                await payments.refund(refund, tx)
        async with payments.service.transaction() as tx:
            assert await tx.session.scalar(select(Card.spent_cents)) == 0


async def test_a_large_order_is_decided_once_and_the_decision_is_published(
    database_url: str,
) -> None:
    request = RequestApproval(order_id=ORDER, amount=Decimal("120.00"))
    async with running(orders.service, database_url):
        assert await approvals.decide(ORDER, approve=True, by="ann") is False
        for _ in range(2):  # an operator has let the saga ask again
            async with orders.service.transaction() as tx:
                await approvals.request_approval(request, tx.session)
        assert await approvals.undecided() == [(ORDER, 120_00)]
        assert await approvals.decide(ORDER, approve=True, by="ann") is True
        assert await approvals.decide(ORDER, approve=False, by="bob") is False
        assert await approvals.undecided() == []
        async with orders.service.transaction() as tx:
            names = list(await tx.session.scalars(select(tables.outbox.c.name)))
    assert names == ["orders.order_approved"]
