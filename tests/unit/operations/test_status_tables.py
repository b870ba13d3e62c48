"""What `eventmesh status` prints of an answer, without any server."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eventmesh.cli.status import as_document, tables
from eventmesh.duration import span
from eventmesh.operations.status import (
    BrokerStatus,
    DatabaseStatus,
    MeshStatus,
    OutboxStatus,
    SagaStatus,
    SubscriptionStatus,
)

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def printed(found: MeshStatus, width: int = 10_000) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False, markup=False, emoji=False).print(tables(found))
    return out.getvalue()


def status(
    *subscriptions: SubscriptionStatus,
    broker: BrokerStatus | None = None,
    databases: tuple[DatabaseStatus, ...] = (),
    sagas: tuple[SagaStatus, ...] = (),
) -> MeshStatus:
    return MeshStatus(NOON, broker or BrokerStatus("redis://r"), subscriptions, databases, sagas)


def row(text: str, name: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(name)]
    return line.split()[1:]


def test_a_known_figure_is_a_number_and_an_unknown_one_is_never_zero() -> None:
    known = SubscriptionStatus(
        "bank", "bank.a", ("m",), ready=1234, delayed=0, in_flight=2, dead=1, rate=0.25, consumers=1
    )
    unknown = SubscriptionStatus(
        "bank",
        "bank.b",
        ("m",),
        ready=3,
        dead=0,
        unknown={"delayed": "kept together", "in_flight": "kept together", "rate": "no inbox"},
    )
    text = printed(status(known, unknown))
    assert row(text, "bank.a") == ["1,234", "0", "2", "1", "-", "0.2", "1"]
    assert row(text, "bank.b") == ["3", "unknown", "unknown", "0", "-", "unknown", "-"]
    assert "unknown: delayed, in flight of bank.b: kept together\n" in text
    assert "unknown: rate of bank.b: no inbox\n" in text


def test_a_terminal_of_80_columns_shows_all_columns_and_whole_names() -> None:
    figures = ("ready", "delayed", "in_flight", "dead", "oldest_age", "rate", "consumers")
    name = "payments.remember_what_was_refunded"
    busy = SubscriptionStatus(
        "shop", "shop.tell", (), 1_234_567, 1_234_567, 12_345, 123, 7_100.0, 1_234.5, 12
    )
    away = SubscriptionStatus("payments", name, (), unknown=dict.fromkeys(figures, "it is away"))
    database = DatabaseStatus(("payments", "orders"), "x", OutboxStatus(1_000_000, 2, 3, 9.0, 4))
    saga = SagaStatus("payments", "payments.refund_all_of_an_order", 1, 2, 3, 4, 5.0)
    text = printed(status(busy, away, databases=(database,), sagas=(saga,)), 80)
    assert "…" not in text
    subscriptions, outboxes, sagas = text.split("\n\n")[1:4]
    for table, headings in (
        (subscriptions, "ready delayed in flight dead oldest rate/s consumers"),
        (outboxes, "due delayed parked oldest relays"),
        (sagas, "running undoing parked overdue oldest"),
    ):
        assert headings in [" ".join(line.split()[1:]) for line in table.splitlines()]
    rows = subscriptions.splitlines()
    assert ["1,234,567", "1,234,567", "12,345", "123", "118", "min", "1,234.5", "12"] in [
        row.split()[1:] for row in rows
    ]
    assert ["unknown"] * 7 in [row.split()[1:] for row in rows]
    assert name in "".join(row.partition(" ")[0] for row in rows)


def test_one_reason_is_printed_once_for_all_rows_that_it_concerns() -> None:
    rows = [
        SubscriptionStatus("s", f"s.h{number}", (), unknown={"ready": "it is away"}, problem="x")
        for number in range(9)
    ]
    text = printed(status(*rows))
    assert text.count("it is away") == 1
    assert "unknown: ready of s.h0, s.h1, s.h2, s.h3 and 5 more: it is away" in text


def test_a_database_that_is_away_is_a_row_of_unknown_figures() -> None:
    there = DatabaseStatus(("a", "b"), "sqlite:///x", OutboxStatus(1, 2, 3, 150.0, 4))
    away = DatabaseStatus(("c",), "sqlite:///y", problem="it is away")
    saga = SagaStatus("c", "c.pay", problem="it is away")
    found = status(databases=(there, away), sagas=(saga,))
    text = printed(found)
    assert found.problems == ("it is away",)
    assert row(text, "a, b")[1:] == ["1", "2", "3", "2", "min", "4"]
    assert row(text, "c ") == ["unknown"] * 5
    assert row(text, "c.pay") == ["unknown"] * 5
    assert "unknown: outbox, sagas of c: it is away" in text


def test_a_backlog_that_is_only_partly_counted_says_so() -> None:
    long = DatabaseStatus(("a",), "x", OutboxStatus(1_000_000, 0, 2, 9.0, 1, is_partial=True))
    assert row(printed(status(databases=(long,))), "a ")[:3] == ["1,000,000+", "0+", "2"]


def test_a_subscription_that_is_not_on_the_broker_is_named() -> None:
    text = printed(status(SubscriptionStatus("s", "s.h", (), ready=0, declared=False)))
    assert "s.h: not on the broker" in text


@given(st.text())
def test_any_text_from_a_server_is_printed_without_control_characters(text: str) -> None:
    found = status(
        SubscriptionStatus("s", "s.h", (), unknown={"ready": text}),
        broker=BrokerStatus(f"redis://{text}", version=text, problem=text),
        databases=(DatabaseStatus((text,), text, problem=text),),
        sagas=(SagaStatus("s", text, 1, 2, 3, 4, 5.0),),
    )
    shown = printed(found)
    assert all(char.isprintable() or char == "\n" for char in shown)
    document = json.loads(json.dumps(as_document(found)))
    assert document["sagas"][0]["name"] == text


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    text = printed(status(sagas=(SagaStatus("s", "[red]<b>x</b>[/red]:smile:", 1, 0, 0, 0),)))
    assert "[red]<b>x</b>[/red]:smile:" in text


def test_durations_are_in_the_largest_unit_that_has_two_of_it() -> None:
    shown = [span(each) for each in (0.04, 0.1, 9.94, 59, 119, 120, 7199, 7200, 172_799, 864_000)]
    assert shown[:5] == ["40 ms", "0.1 s", "9.9 s", "59 s", "119 s"]
    assert shown[5:] == ["2 min", "119 min", "2 h", "47 h", "10 d"]
