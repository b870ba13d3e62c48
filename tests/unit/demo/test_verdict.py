"""The demo's verdict fails for each promise that the ledger breaks, and names it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.demo.ledger import Ledger, OrderFacts
from services.demo.verdict import endings, judge, latencies, percentile

CLOSED, DECLINED = UUID(int=1), UUID(int=2)
PLACED_AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDED_AT = PLACED_AT + timedelta(seconds=2)


def closed(**changes: Any) -> OrderFacts:
    facts = OrderFacts("closed", None, "EM1", 999, 3, 1, PLACED_AT, ENDED_AT)
    return replace(facts, **changes)


def declined(**changes: Any) -> OrderFacts:
    facts = OrderFacts("cancelled", "card limit reached", None, 500, 2, 1, PLACED_AT, ENDED_AT)
    return replace(facts, **changes)


def ledger(**changes: Any) -> Ledger:
    good = Ledger(
        placed=[CLOSED, DECLINED],
        orders={CLOSED: closed(), DECLINED: declined()},
        payments={CLOSED: [("captured", 999)]},
        reservations={CLOSED: [("reserved", 3)], DECLINED: [("released", 2)]},
        shipments={CLOSED: [3]},
        sagas={"completed": 1, "undone": 1},
        stock_difference=0,
        points=9,
        outboxes={"orders": 0},
        handled=20,
        dead_letters={"orders.place_order": 0},
    )
    return replace(good, **changes)


def test_a_correct_ledger_has_no_problems() -> None:
    verdict = judge(ledger())
    assert verdict.problems == ()
    assert str(verdict) == "ok: 2 purchases, 0 lost, 0 doubled, 0 stuck"


@pytest.mark.parametrize(
    ("changes", "counts", "words"),
    [
        ({"orders": {CLOSED: closed()}}, (1, 0, 0), "lost"),
        ({"orders": {CLOSED: closed(), DECLINED: declined(status="placed")}}, (0, 0, 1), "stuck"),
        ({"orders": {CLOSED: closed(endings=2), DECLINED: declined()}}, (0, 1, 0), "doubled"),
        ({"payments": {CLOSED: [("captured", 999), ("captured", 999)]}}, (0, 1, 0), "doubled"),
        ({"reservations": {CLOSED: [("reserved", 3)] * 2}}, (0, 1, 0), "doubled"),
        ({"shipments": {CLOSED: [3, 3]}}, (0, 1, 0), "doubled"),
        ({"payments": {}}, (0, 0, 0), "money captured is 0.00, of shipped orders 9.99"),
        ({"payments": {CLOSED: [("captured", 998)]}}, (0, 0, 0), "money captured"),
        ({"reservations": {CLOSED: [("reserved", 2)]}}, (0, 0, 0), "stock reserved is 2"),
        (
            {"payments": {CLOSED: [("captured", 999)], DECLINED: [("captured", 500)]}},
            (0, 0, 0),
            "ended wrongly",
        ),
        ({"shipments": {}}, (0, 0, 0), "ended wrongly"),
        (
            {"orders": {CLOSED: closed(tracking_number=None), DECLINED: declined()}},
            (0, 0, 0),
            "ended wrongly",
        ),
        ({"points": 14}, (0, 0, 0), "loyalty points are 14, of closed orders 9"),
        ({"stock_difference": -3}, (0, 0, 0), "differs by -3"),
        ({"sagas": {"completed": 1, "undoing": 1}}, (0, 0, 0), "still undoing"),
        ({"sagas": {"completed": 1}}, (0, 0, 0), "1 sagas were started for 2 purchases"),
        ({"outboxes": {"orders": 4}}, (0, 0, 0), "the outbox of orders holds 4"),
        ({"dead_letters": {"orders.place_order": 1}}, (0, 0, 0), "1 dead letters"),
    ],
)
def test_each_broken_promise_is_counted_and_described(
    changes: dict[str, Any], counts: tuple[int, int, int], words: str
) -> None:
    verdict = judge(ledger(**changes))
    assert not verdict.ok
    assert str(verdict).startswith("NOT OK")
    assert (verdict.lost, verdict.doubled, verdict.stuck) == counts
    assert any(words in problem for problem in verdict.problems), verdict.problems


def test_endings_and_latencies_are_computed_from_the_orders() -> None:
    assert endings(ledger()) == {"closed": 1, "cancelled: card limit reached": 1}
    assert latencies(ledger()) == [2.0, 2.0]


def test_percentiles_use_the_nearest_rank() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)
    assert percentile([], 99) == 0.0
    assert percentile([7.0], 99) == 7.0
