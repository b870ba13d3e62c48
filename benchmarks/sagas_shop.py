"""The shop of `services/` as a program that runs workflows: each order is placed, its stock and its
payment are taken side by side, it is shipped, and it is closed. These are nine messages. Two of
them go to two subscriptions, and all have effects in the four databases.

The order has ended when the service orders has handled the event that closes it, which the saga has
published at its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import asyncpg  # type: ignore[import-untyped]

from benchmarks.sagas_programs import (
    Run,
    Servers,
    check_count,
    driven_by,
    fresh_services,
    workers,
)
from eventmesh.clock import SystemClock
from eventmesh.runtime.declaring.discovery import load_services
from services.orders.contracts import PlaceOrder

SERVICES = ("orders", "payments", "inventory", "shipping")
LOOK_EVERY = 0.02
"""Seconds between two looks at which orders are closed."""

ORDERS_OF_AN_ARTICLE = 100
"""Fewer than are in stock, so that no order fails."""

ORDERS_OF_A_CUSTOMER = 3
"""As in the purchases that the demo replays."""


@asynccontextmanager
async def shop_orders(servers: Servers) -> AsyncIterator[Run]:
    """Each run places an order that everybody can fulfil, and waits until it is closed."""
    services = load_services(SERVICES, Path.cwd())
    orders, clock, placed = services[0], SystemClock(), 0
    waiting: dict[UUID, asyncio.Future[None]] = {}

    async def run() -> None:
        nonlocal placed
        placed += 1
        order = PlaceOrder(
            order_id=UUID(clock.new_id()),
            card=f"card-{placed // ORDERS_OF_A_CUSTOMER}",
            sku=f"cd-{placed // ORDERS_OF_AN_ARTICLE}",
            quantity=1,
            amount=Decimal("14.99"),
        )
        closed = waiting[order.order_id] = asyncio.get_running_loop().create_future()
        async with orders.transaction() as tx:
            tx.send(order)
        await closed

    async with fresh_services(services, servers) as settings:
        url = settings.database_url("orders")
        async with workers(services, settings), asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(_watch(url, waiting))
            try:
                yield run
            finally:
                watching.cancel()
        await check_count(url, "orders WHERE status = 'closed' AND endings = 1", placed)
        await check_count(url, "eventmesh_saga WHERE status = 'completed'", placed)
        await check_count(settings.database_url("payments"), "payments", placed)
        await check_count(settings.database_url("inventory"), "reservations", placed)
        await check_count(settings.database_url("shipping"), "shipments", placed)


async def _watch(url: str, waiting: dict[UUID, asyncio.Future[None]]) -> None:
    """Tell those who wait for orders that have been closed."""
    connection = await asyncpg.connect(driven_by("", url))
    query = "SELECT order_id FROM orders WHERE order_id = ANY($1::uuid[]) AND status = 'closed'"
    with suppress(asyncio.CancelledError):
        while True:
            for row in await connection.fetch(query, list(waiting)):
                closed = waiting.pop(UUID(str(row["order_id"])))
                if not closed.done():
                    closed.set_result(None)
            await asyncio.sleep(LOOK_EVERY)
    await connection.close()
