"""The equations of `eventmesh audit`, and what is made of one that does not hold; no server."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eventmesh.cli.audit import as_document, metric, table
from eventmesh.operations.audit import (
    BalanceSheet,
    DeliveryLine,
    Difference,
    InboxLine,
    OutboxLine,
    _suspects,
    inbox_lines,
    outbox_lines,
)
from eventmesh.operations.reach import Place
from eventmesh.persistence.counts import Books, Total, Way

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
ORDERS = Place("sqlite://", ("orders",))

number = st.integers(0, 1_000)


def total(what: str, count: int, *, subscription: str = "", name: str = "orders.placed") -> Total:
    return Total(Way(what, subscription, "orders", name), count, NOON)


def delivery(**changes: object) -> DeliveryLine:
    parts = ("relayed", "handled", "ready", "delayed", "in_flight", "dead", "discarded", "accepted")
    values = dict.fromkeys(parts, 0) | {"published": changes.get("relayed", 0)} | changes
    return DeliveryLine("billing.charge", "orders", "orders.placed", **values)  # type: ignore[arg-type]


@given(st.lists(number, min_size=7, max_size=7))
def test_what_is_somewhere_is_not_missing_wherever_it_is(parts: list[int]) -> None:
    names = ("handled", "ready", "delayed", "in_flight", "dead", "discarded", "accepted")
    places = dict(zip(names, parts, strict=True))
    assert delivery(relayed=sum(parts), **places).missing == 0
    assert delivery(relayed=sum(parts) + 2, **places).missing == 2


def test_what_has_not_taken_effect_is_not_suspected_to_have_done_so_twice() -> None:
    foreign = "messages that were published as /orders without its outbox"
    assert _suspects(delivery(relayed=1, handled=1, discarded=1)) == (foreign,)
    twice, second = _suspects(delivery(relayed=1, handled=2))
    assert ("took effect twice" in twice, second) == (True, foreign)
    assert "purged queue" in _suspects(delivery(relayed=1))[0]


@given(number, number, number, number, number)
def test_an_outbox_is_balanced_by_what_left_it_and_what_is_in_it(
    relayed: int, skipped: int, due: int, delayed: int, parked: int
) -> None:
    key = ("orders", "orders.placed")
    books = Books(
        (
            total("stored", relayed + skipped + due + delayed + parked),
            total("relayed", relayed),
            total("skipped", skipped),
        ),
        {(*key, "due"): due, (*key, "delayed"): delayed, (*key, "parked"): parked},
    )
    [line] = outbox_lines(ORDERS, books)
    assert (line.missing, line.waiting, line.parked) == (0, due + delayed, parked)


def test_what_waits_in_the_outbox_may_be_published_unless_its_publisher_delayed_it() -> None:
    key = ("orders", "orders.placed")
    stock = {"due": 1, "rejected": 20, "parked": 300, "delayed": 4_000}
    books = Books(
        (total("stored", 54_321), total("relayed", 50_000)),
        {(*key, state): number for state, number in stock.items()},
    )
    [line] = outbox_lines(ORDERS, books)
    assert (line.missing, line.waiting, line.parked) == (0, 4_021, 300)
    assert line.perhaps_published == 50_321


def test_the_time_outs_of_sagas_are_left_out() -> None:
    assert outbox_lines(ORDERS, Books((total("stored", 1, name="orders.buy.signal"),))) == []


def test_the_messages_of_all_publishers_are_remembered_together() -> None:
    handled = [
        Total(Way("handled", "billing.charge", source, "orders.placed"), 2, NOON)
        for source in ("orders", "bridge")
    ]
    forgotten = Total(Way("forgotten", "billing.charge", "", ""), 1, NOON)
    [line] = inbox_lines(Books((*handled, forgotten), {}, {"billing.charge": 2}))
    assert line == InboxLine("billing.charge", 4, 2, 1, 0)
    assert line.missing == 1


@pytest.mark.parametrize(
    ("line", "uncertain"),
    [
        (delivery(relayed=2, unseen=0), False),
        (delivery(relayed=2, unseen=1), False),
        (delivery(relayed=2, unseen=2), True),
        (delivery(relayed=2, unseen=None), True),
        (delivery(relayed=2, handled=2, in_flight=1), True),  # handled and not settled yet
        (delivery(relayed=2, handled=3), False),  # handled twice
        (delivery(relayed=2, handled=9, published=9), True),  # published and handled meanwhile
        (delivery(relayed=2, handled=9, published=8), False),  # one of them twice
        (delivery(relayed=2, handled=9, published=None), True),  # nobody answered
        (delivery(relayed=2, handled=1, published=9), False),  # a loss is one all the same
    ],
)
def test_a_difference_that_the_broker_may_explain_is_uncertain(
    line: DeliveryLine, uncertain: bool
) -> None:
    assert line.is_uncertain is uncertain


def test_only_what_cannot_have_been_published_is_too_many() -> None:
    assert delivery(relayed=2, handled=9, published=9).missing == 0
    assert delivery(relayed=2, handled=9, published=8).missing == -1
    copy = delivery(relayed=2, handled=3, in_flight=1)  # will be skipped as a duplicate
    assert copy.missing == -1
    assert delivery(relayed=2, handled=3, discarded=1, dead=1, published=3).missing == -2


def sheet(text: str, missing: int = 1) -> BalanceSheet:
    difference = Difference(
        "delivery", f"a.{text}", text, "orders", missing, (text,), "a", Way("accepted", "", "", "")
    )
    outbox = OutboxLine(("orders",), "orders", text, 1, 1, 0, 0, 0, 0)
    line = DeliveryLine(f"a.{text}", "orders", text, missing, 0, 0, 0, 0, 0, 0, 0, 0)
    return BalanceSheet(NOON, (outbox,), (line,), (), (difference,), (difference,), (text,))


def test_a_terminal_of_80_columns_shows_all_figures_that_are_not_0() -> None:
    subscription, name = "payments.remember_what_was_refunded", "orders.placed_by_a_customer"
    outbox = OutboxLine(("orders",), "orders", name, 9_876_543, 8_641_964, 1_234_567, 12, 0, 0)
    line = DeliveryLine(
        subscription, "orders", name, 8_641_964, 8_641_941, 0, 0, 0, 23, 0, 0, 8_641_964
    )
    out = io.StringIO()
    Console(file=out, width=80).print(table(BalanceSheet(NOON, (outbox,), (line,), ())))
    [heading, *rows] = out.getvalue().split("\n\n")[0].splitlines()
    assert heading.split()[2:] == ["sent", "handled", "outbox", "parked", "dead", "missing"]
    assert rows[0].split()[2:-1] == ["9,876,543", "8,641,941", "1,234,567", "12", "23"]
    folded = [row.split()[:2] for row in rows]
    assert "".join(parts[0] for parts in folded) == subscription
    assert "".join(parts[1] for parts in folded if len(parts) > 1) == name


@given(st.text(max_size=30))
def test_no_name_adds_a_line_or_a_sample_of_its_own(text: str) -> None:
    out = io.StringIO()
    Console(file=out, width=10_000, highlight=False, markup=False, emoji=False).print(
        table(sheet(text))
    )
    shown = out.getvalue().splitlines()
    assert all(line.isprintable() for line in shown)
    assert len(shown) == 8  # heading, row, blank line, difference, suspect, late, note, verdict
    [_, _, sample] = metric(sheet(text))
    assert sample.isprintable()
    assert sample.endswith(" 1")
    json.dumps(as_document(sheet(text)))


def test_a_sheet_that_is_not_whole_has_no_sample() -> None:
    assert len(list(metric(BalanceSheet(NOON, (), (), (), problems=("away",))))) == 2
    [_, _, zero] = metric(BalanceSheet(NOON, (), (), ()))
    assert zero.endswith("} 0")
