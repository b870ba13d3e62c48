"""Checks the ledger of a demo run: pure functions of what the databases hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.demo.ledger import Ledger, OrderFacts


@dataclass(frozen=True, slots=True)
class Verdict:
    """How many purchases were lost, doubled or stuck, and every problem in words."""

    purchases: int
    lost: int
    doubled: int
    stuck: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        return (
            f"{'ok' if self.ok else 'NOT OK'}: {self.purchases} purchases, {self.lost} lost, "
            f"{self.doubled} doubled, {self.stuck} stuck"
        )


def judge(ledger: Ledger) -> Verdict:
    """Check every promise of the demo against the ledger."""
    lost = [order_id for order_id in ledger.placed if order_id not in ledger.orders]
    stuck = [order_id for order_id, order in ledger.orders.items() if order.status == "placed"]
    doubled = [order_id for order_id, order in ledger.orders.items() if _doubled(ledger, order_id)]
    problems = [
        *_some("lost: no order was made for", lost),
        *_some("doubled: more than one effect of", doubled),
        *_some("stuck: no end came for", stuck),
        *_some("ended wrongly:", list(_inconsistent(ledger))),
        *_sums(ledger),
        *_leftovers(ledger),
    ]
    return Verdict(len(ledger.placed), len(lost), len(doubled), len(stuck), tuple(problems))


def endings(ledger: Ledger) -> Counter[str]:
    """The number of orders by how they ended."""
    return Counter(
        order.status if order.reason is None else f"{order.status}: {order.reason}"
        for order in ledger.orders.values()
    )


def latencies(ledger: Ledger) -> list[float]:
    """Seconds from placing to ending each order, sorted."""
    return sorted(
        (order.ended_at - order.placed_at).total_seconds()
        for order in ledger.orders.values()
        if order.ended_at is not None
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of sorted values by nearest rank; 0 without values."""
    if not values:
        return 0.0
    return values[max(math.ceil(len(values) * percent / 100), 1) - 1]


def _doubled(ledger: Ledger, order_id: UUID) -> bool:
    return (
        ledger.orders[order_id].endings > 1
        or len(ledger.payments.get(order_id, ())) > 1
        or len(ledger.reservations.get(order_id, ())) > 1
        or len(ledger.shipments.get(order_id, ())) > 1
    )


def _inconsistent(ledger: Ledger) -> Iterator[UUID]:
    """Ended orders whose payment, stock or shipment contradicts how they ended."""
    for order_id, order in ledger.orders.items():
        if order.status != "placed" and not _fits(ledger, order_id, order):
            yield order_id


def _fits(ledger: Ledger, order_id: UUID, order: OrderFacts) -> bool:
    money = [cents for status, cents in ledger.payments.get(order_id, ()) if status == "captured"]
    stock = [
        number for status, number in ledger.reservations.get(order_id, ()) if status == "reserved"
    ]
    parcels = list(ledger.shipments.get(order_id, ()))
    if order.status == "closed":
        complete = order.tracking_number is not None and order.endings == 1
        return complete and (money, stock, parcels) == (
            [order.cents],
            [order.quantity],
            [order.quantity],
        )
    return order.endings == 1 and not (money or stock or parcels)


def _sums(ledger: Ledger) -> Iterator[str]:
    shipped = sum(sum(numbers) for numbers in ledger.shipments.values())
    owed = sum(
        ledger.orders[order_id].cents for order_id in ledger.shipments if order_id in ledger.orders
    )
    captured = sum(
        cents for rows in ledger.payments.values() for status, cents in rows if status == "captured"
    )
    reserved = sum(
        number
        for rows in ledger.reservations.values()
        for status, number in rows
        if status == "reserved"
    )
    if captured != owed:
        yield f"money captured is {captured / 100:.2f}, of shipped orders {owed / 100:.2f}"
    if reserved != shipped:
        yield f"stock reserved is {reserved}, stock shipped {shipped}"
    earned = sum(order.cents // 100 for order in ledger.orders.values() if order.status == "closed")
    if ledger.points != earned:
        yield f"loyalty points are {ledger.points}, of closed orders {earned}"
    if ledger.stock_difference:
        yield f"stock supplied differs by {ledger.stock_difference} from on hand and reserved"


def _leftovers(ledger: Ledger) -> Iterator[str]:
    started = sum(ledger.sagas.values())
    if started != len(ledger.placed):
        yield f"{started} sagas were started for {len(ledger.placed)} purchases"
    for status in ("running", "undoing", "parked"):
        if ledger.sagas.get(status):
            yield f"{ledger.sagas[status]} sagas are still {status}"
    for service, rows in ledger.outboxes.items():
        if rows:
            yield f"the outbox of {service} holds {rows} messages"
    for subscription, count in ledger.dead_letters.items():
        if count:
            yield f"{subscription} has {count} dead letters"


def _some(what: str, order_ids: Sequence[UUID]) -> Iterator[str]:
    if order_ids:
        shown = ", ".join(map(str, order_ids[:3])) + (", …" if len(order_ids) > 3 else "")
        yield f"{what} {len(order_ids)} purchases ({shown})"
