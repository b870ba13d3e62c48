"""Counting messages by subscription, name, version and state."""

from __future__ import annotations

from datetime import UTC, datetime

from eventmesh.transports import census
from eventmesh.transports.census import Census, Hidden, Kind
from eventmesh.wire.envelope import Envelope


def message(name: str = "shop.paid", dataschema: str = "", time: str = "") -> Envelope:
    attributes = {"type": name, "dataschema": dataschema, "time": time}
    return Envelope({key: text for key, text in attributes.items() if text}, b"")


def test_the_version_is_read_from_a_dataschema_of_the_message_itself() -> None:
    found = Census()
    for dataschema in ("urn:eventmesh:shop.paid:2", "urn:eventmesh:shop.other:2", "urn:x", "", "2"):
        found.add("mail.tell", message(dataschema=dataschema), "ready")
    found.add("mail.tell", Envelope({}, b"garbage"), "dead")
    counts = {kind: lot.number for kind, lot in found.lots.items()}
    assert counts == {
        Kind("mail.tell", "shop.paid", 2, "ready"): 1,
        Kind("mail.tell", "shop.paid", None, "ready"): 4,
        Kind("mail.tell", "", None, "dead"): 1,
    }


def test_the_oldest_message_is_found_across_time_zones() -> None:
    found = Census()
    for time in ("2026-01-02T00:00:00Z", "2026-01-02T00:30:00+01:00", "yesterday", ""):
        found.add("mail.tell", message(time=time), "ready")
    [lot] = found.lots.values()
    assert (lot.number, lot.oldest) == (4, datetime(2026, 1, 1, 23, 30, tzinfo=UTC))


def test_a_time_without_a_zone_is_utc() -> None:
    found = Census()
    for time in ("2026-01-02T00:00:00", "2026-01-01T00:00:00Z"):
        found.add("mail.tell", message(time=time), "ready")
    [lot] = found.lots.values()
    assert lot.oldest == datetime(2026, 1, 1, tzinfo=UTC)


def test_the_number_of_kinds_is_limited_and_the_rest_is_counted_together() -> None:
    found = Census()
    for number in range(census.MOST_KINDS + 3):
        found.add("mail.tell", message(f"shop.m{number}"), "ready")
    found.add("mail.tell", message("shop.m0"), "ready")
    assert len(found.lots) == census.MOST_KINDS
    [hidden] = found.hidden
    assert hidden == Hidden("mail.tell", "ready", 3, hidden.why)
    assert found.lots[Kind("mail.tell", "shop.m0", None, "ready")].number == 2
