"""Reads the orders of one demo run from the four databases, for `verdict` to check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.persistence.database import Database
from eventmesh.persistence.tables import inbox, outbox, saga_log
from eventmesh.persistence.tables import reaction as reactions
from eventmesh.persistence.tables import saga as sagas
from eventmesh.runtime.consuming.dead_letter_signal import SIGNAL_SUFFIX
from services.inventory.models import Reservation, Stock
from services.orders.models import Order
from services.payments.models import LoyaltyAccount, Payment
from services.shipping.models import Shipment

Query = Select[*tuple[Any, ...]]

SERVICES = ("orders", "payments", "inventory", "shipping")


@dataclass(frozen=True, slots=True)
class OrderFacts:
    """One order, as the service orders stores it."""

    status: str
    reason: str | None
    tracking_number: str | None
    cents: int
    quantity: int
    endings: int
    placed_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True)
class Ledger:
    """Everything stored about the orders of one run, by order id, and about each service."""

    placed: Sequence[UUID]
    orders: Mapping[UUID, OrderFacts]
    payments: Mapping[UUID, Sequence[tuple[str, int]]]
    reservations: Mapping[UUID, Sequence[tuple[str, int]]]
    shipments: Mapping[UUID, Sequence[int]]
    sagas: Mapping[str, int]
    """The number of sagas by status."""
    stock_difference: int
    outboxes: Mapping[str, int]
    handled: int
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    saga_endings: Mapping[str, int] = field(default_factory=dict)
    """The number of sagas by how they ended, and why; those that have not ended by their status."""
    points: int = 0
    """The loyalty points of all cards of this run."""
    late_answers: int = 0
    """How many late answers were undone, because their sagas had given up on them."""


class LedgerReader:
    """Reads the four databases for the orders of one run."""

    def __init__(self, databases: Mapping[str, Database], placed: Sequence[UUID]) -> None:
        self._databases = databases
        self._placed = placed
        # UUIDv7 ids that one process creates in a row: no other order has an id between them.
        self._first, self._last = min(placed), max(placed)

    async def ended(self) -> int:
        """How many orders have ended."""
        async with self._databases["orders"].reading() as connection:
            query = self._mine(select(func.count()), Order).where(Order.status != "placed")
            return await connection.scalar(query) or 0

    async def pending_effects(self) -> int:
        """How many effects are outstanding: outbox rows, tracking numbers not yet stored, open
        sagas, and loyalty points not yet given or taken back."""
        waiting = 0
        for database in self._databases.values():
            async with database.reading() as connection:
                waiting += await _outbox_rows(connection)
        async with self._databases["orders"].reading() as connection:
            query = self._mine(select(func.count()), Order).where(
                Order.status == "closed", Order.tracking_number.is_(None)
            )
            open_sagas = self._my_sagas(select(func.count())).where(sagas.c.ended_at.is_(None))
            waiting += await connection.scalar(open_sagas) or 0
            waiting += await connection.scalar(query) or 0
            closed = self._mine(select(func.count()), Order).where(Order.status == "closed")
            with_points = await connection.scalar(closed) or 0
        given = select(func.count()).where(
            reactions.c.subscription == "payments.give_points",
            reactions.c.key.between(str(self._first), str(self._last)),
        )
        async with self._databases["payments"].reading() as connection:
            started = await connection.scalar(given) or 0
            kept = await connection.scalar(given.where(reactions.c.status == "done")) or 0
        return waiting + len(self._placed) - started + abs(kept - with_points)

    async def handled(self) -> int:
        """How many messages have ever taken effect, in all four databases."""
        total = 0
        for database in self._databases.values():
            async with database.reading() as connection:
                total += await connection.scalar(select(func.count()).select_from(inbox)) or 0
        return total

    async def read(self) -> Ledger:
        """Read everything for the verdict."""
        orders = await self._orders()
        endings, outboxes = await self._saga_endings(), {}
        for name, database in self._databases.items():
            async with database.reading() as connection:
                outboxes[name] = await _outbox_rows(connection)
        payments = select(Payment.order_id, Payment.status, Payment.cents)
        reserved = select(Reservation.order_id, Reservation.status, Reservation.quantity)
        shipped = select(Shipment.order_id, Shipment.quantity)
        return Ledger(
            placed=self._placed,
            orders=orders,
            payments=_pairs(await self._rows("payments", payments, Payment)),
            reservations=_pairs(await self._rows("inventory", reserved, Reservation)),
            shipments=_singles(await self._rows("shipping", shipped, Shipment)),
            sagas=_by_status(endings),
            stock_difference=await self._stock_difference(),
            outboxes=outboxes,
            handled=await self.handled(),
            saga_endings=_by_ending(endings),
            points=await self._points(),
            late_answers=await self._late_answers(),
        )

    async def _orders(self) -> dict[UUID, OrderFacts]:
        query = select(
            Order.order_id,
            Order.status,
            Order.reason,
            Order.tracking_number,
            Order.cents,
            Order.quantity,
            Order.endings,
            Order.placed_at,
            Order.ended_at,
        )
        rows = await self._rows("orders", query, Order)
        return {order_id: OrderFacts(*facts) for order_id, *facts in rows}

    async def _saga_endings(self) -> Counter[tuple[str, str]]:
        """The number of this run's sagas by status, and what failed if something did."""
        failure = sagas.c.details["failure"]["name"].as_string()
        query = self._my_sagas(select(sagas.c.status, failure, func.count()))
        async with self._databases["orders"].reading() as connection:
            rows = await connection.execute(query.group_by(sagas.c.status, failure))
            return Counter({(status, why or ""): count for status, why, count in rows})

    async def _points(self) -> int:
        """The points of the cards of this run, which are its own."""
        cards = await self._rows("orders", select(Order.card).distinct(), Order)
        prefix = cards[0][0].rpartition("-")[0] if cards else ""
        query = select(func.sum(LoyaltyAccount.points)).where(
            LoyaltyAccount.card.startswith(f"{prefix}-", autoescape=True)
        )
        async with self._databases["payments"].reading() as connection:
            return int(await connection.scalar(query) or 0)

    async def _late_answers(self) -> int:
        query = self._my_sagas(select(func.count())).join_from(
            saga_log,
            sagas,
            (saga_log.c.saga_name == sagas.c.name) & (saga_log.c.saga_id == sagas.c.id),
        )
        rules = ("late: undone", "late: to be undone")
        query = query.where(saga_log.c.entry["rule"].as_string().in_(rules))
        async with self._databases["orders"].reading() as connection:
            return await connection.scalar(query) or 0

    def _my_sagas(self, query: Query) -> Query:
        order_id = sagas.c.state["order_id"].as_string()
        return query.where(order_id >= str(self._first), order_id <= str(self._last))

    async def _stock_difference(self) -> int:
        """All supplied stock minus what is on hand or reserved; zero unless some was lost."""
        async with self._databases["inventory"].reading() as connection:
            stock = await connection.scalar(
                select(func.coalesce(func.sum(Stock.supplied - Stock.on_hand), 0))
            )
            reserved = await connection.scalar(
                select(func.coalesce(func.sum(Reservation.quantity), 0)).where(
                    Reservation.status == "reserved"
                )
            )
        return int(stock or 0) - int(reserved or 0)

    async def _rows(self, service: str, query: Query, model: Any) -> Sequence[Any]:
        async with self._databases[service].reading() as connection:
            rows: Sequence[Any] = (await connection.execute(self._mine(query, model))).all()
        return rows

    def _mine(self, query: Query, model: Any) -> Query:
        return query.where(model.order_id.between(self._first, self._last))


async def _outbox_rows(connection: AsyncConnection) -> int:
    """How many messages are still to be published. On MariaDB, time-outs stay until they are due,
    also those of sagas that do not wait any more."""
    rows = select(func.count()).select_from(outbox)
    if connection.dialect.name == "mariadb":
        is_time_out = outbox.c.name.endswith(SIGNAL_SUFFIX) & outbox.c.due_at.is_not(None)
        rows = rows.where(~is_time_out)
    return await connection.scalar(rows) or 0


def _by_status(endings: Mapping[tuple[str, str], int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (status, _), count in endings.items():
        counts[status] += count
    return counts


def _by_ending(endings: Mapping[tuple[str, str], int]) -> dict[str, int]:
    return {
        f"{status}: {why}" if why and status != "completed" else status: count
        for (status, why), count in endings.items()
    }


def _pairs(rows: Sequence[Any]) -> dict[UUID, list[tuple[str, int]]]:
    found: dict[UUID, list[tuple[str, int]]] = {}
    for order_id, status, number in rows:
        found.setdefault(order_id, []).append((status, number))
    return found


def _singles(rows: Sequence[Any]) -> dict[UUID, list[int]]:
    found: dict[UUID, list[int]] = {}
    for order_id, number in rows:
        found.setdefault(order_id, []).append(number)
    return found
