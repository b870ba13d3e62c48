"""The messages that every contender carries: events of 430 bytes, sealed in our envelope."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from pydantic import BaseModel

from eventmesh.clock import SystemClock
from eventmesh.contracts.message import Event
from eventmesh.wire.envelope import Envelope, seal

EVENT_BYTES = 430

_ORDER_ID = re.compile(rb'"order_id":"([0-9a-f-]{36})"')


class Line(BaseModel):
    """One line of an order."""

    sku: str
    quantity: int
    price: Decimal


class OrderPlaced(Event, name="shop.order_placed", version=1, key="order_id"):
    """An ordinary event: ids, texts, money, a time and a list, all of them validated."""

    order_id: UUID
    customer_id: UUID
    email: str
    currency: str
    total: Decimal
    placed_at: datetime
    lines: list[Line]
    note: str


def make_envelopes(count: int) -> list[Envelope]:
    """So many different events, each with exactly EVENT_BYTES of data."""
    clock = SystemClock()
    events = []
    for number in range(count):
        bare = _event(number, note="")
        padding = EVENT_BYTES - len(bare.model_dump_json())
        events.append(bare.model_copy(update={"note": "n" * padding}))
    return [seal(event, source="shop", clock=clock) for event in events]


def order_id_in(raw: bytes) -> UUID:
    """Which event this is, however a contender has wrapped its JSON."""
    found = _ORDER_ID.search(raw)
    if found is None:
        raise ValueError(f"no event of ours: {raw[:100]!r}")
    return UUID(found[1].decode())


def in_batches(envelopes: Sequence[Envelope], size: int) -> Iterator[Sequence[Envelope]]:
    """The envelopes in runs of `size`."""
    for start in range(0, len(envelopes), size):
        yield envelopes[start : start + size]


def _event(number: int, note: str) -> OrderPlaced:
    return OrderPlaced(
        order_id=uuid4(),
        customer_id=uuid4(),
        email=f"customer{number:08}@example.com",
        currency="EUR",
        total=Decimal("149.97"),
        placed_at=datetime.now(UTC).replace(microsecond=123456),
        lines=[
            Line(sku="book-0001", quantity=1, price=Decimal("49.99")),
            Line(sku="lamp-0002", quantity=2, price=Decimal("49.99")),
        ],
        note=note,
    )
