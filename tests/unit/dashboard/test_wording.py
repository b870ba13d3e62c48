"""What needs attention, and why figures are unknown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from eventmesh.dashboard.wording import OLD, alarms, notes
from eventmesh.operations.status import (
    BrokerStatus,
    DatabaseStatus,
    MeshStatus,
    OutboxStatus,
    SagaStatus,
    SubscriptionStatus,
)
from eventmesh.persistence.pauses import Pause

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status(
    subscription: dict[str, Any] | None = None,
    outbox: dict[str, Any] | None = None,
    saga: dict[str, Any] | None = None,
    broker: str | None = None,
) -> MeshStatus:
    calm = {"due": 0, "delayed": 0, "parked": 0, "oldest_age": None, "relays": 1}
    return MeshStatus(
        NOW,
        BrokerStatus("redis://broker", problem=broker),
        (SubscriptionStatus("shop", "shop.bill", ("shop.bill",), **(subscription or {})),),
        (DatabaseStatus(("shop",), "sqlite:///", OutboxStatus(**calm | (outbox or {}))),),
        (SagaStatus("shop", "shop.order", **(saga or {})),),
    )


def test_a_calm_mesh_needs_no_attention() -> None:
    assert alarms(status({"ready": 5, "consumers": 1, "oldest_age": 1.0, "dead": 0})) == ()


@pytest.mark.parametrize(
    ("found", "text", "page"),
    [
        (status({"dead": 1}), "1 dead letter in shop.bill", "/dead-letters"),
        (status({"dead": 2_000}), "2,000 dead letters in shop.bill", "/dead-letters"),
        (
            status({"ready": 1, "consumers": 0}),
            "no worker consumes shop.bill, and messages wait",
            "/subscription",
        ),
        (status({"oldest_age": OLD + 1}), "messages wait for long in shop.bill", "/subscription"),
        (
            status({"ready": 1, "consumers": 0, "paused": Pause(NOW, "ada", "repairs")}),
            "shop.bill is paused since 2026-01-01 00:00:00 UTC by ada: repairs",
            "/subscription",
        ),
        (status({"declared": False}), "shop.bill is not on the broker yet", "/subscription"),
        (status(outbox={"parked": 3}), "3 parked in the outbox of shop", "/outbox"),
        (
            status(outbox={"due": 3, "relays": 0}),
            "no relay publishes the outbox of shop",
            "/outbox",
        ),
        (status(saga={"parked": 1}), "1 parked: shop.order", "/sagas"),
        (status(saga={"overdue": 1}), "1 overdue: shop.order", "/sagas"),
        (status(broker="it is away"), "it is away", ""),
    ],
)
def test_each_of_these_needs_attention(found: MeshStatus, text: str, page: str) -> None:
    [alarm] = alarms(found)
    assert (alarm.text, alarm.page) == (text, page)


def test_what_is_grave_comes_first() -> None:
    found = alarms(status({"oldest_age": OLD + 1, "dead": 1}, saga={"overdue": 1, "parked": 1}))
    assert [each.grave for each in found] == ["bad", "bad", "warning", "warning"]


def test_each_reason_is_given_once_with_what_it_concerns() -> None:
    unknown = {"ready": "away", "rate": "no inbox", "dead": "away"}
    [away, no_inbox] = notes(status({"unknown": unknown}))
    assert (away.what, away.why) == ("ready, dead of shop.bill", "away")
    assert (no_inbox.what, no_inbox.why) == ("rate of shop.bill", "no inbox")
