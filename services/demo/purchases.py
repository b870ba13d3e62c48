"""The purchases that the demo replays; `data/README.md` names their source."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from eventmesh.clock import Clock
from services.orders.contracts import PlaceOrder

_DATA = Path(__file__).parent / "data" / "cdnow-sample.txt"
_ARTICLES = 10


@dataclass(frozen=True, slots=True)
class Purchase:
    """One line of the data."""

    customer: str
    quantity: int
    amount: Decimal


def read_purchases(count: int) -> list[Purchase]:
    """The first `count` purchases, starting over at the end of the data."""
    lines = _DATA.read_text(encoding="ascii").splitlines()
    return list(itertools.islice(itertools.cycle(_parse(lines)), count))


def commands(purchases: Iterable[Purchase], run: str, clock: Clock) -> Iterator[PlaceOrder]:
    """The orders to place. Each run has new cards, and with them unused limits."""
    for purchase in purchases:
        yield PlaceOrder(
            order_id=UUID(clock.new_id()),
            card=f"{run}-{purchase.customer}",
            sku=f"cd-{int(purchase.customer) % _ARTICLES}",
            quantity=purchase.quantity,
            amount=purchase.amount,
        )


def _parse(lines: Iterable[str]) -> list[Purchase]:
    rows = (line.split() for line in lines if line.strip())
    return [Purchase(customer, int(cds), Decimal(value)) for _, customer, _, cds, value in rows]
