"""What a relay may leave out when it looks into the outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from eventmesh.persistence.outbox import NOTHING, Seen
from eventmesh.runtime.horizon import LAG, Horizon

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_at_first_everything_is_looked_at() -> None:
    assert Horizon().beyond(100.0) == NOTHING


def test_what_was_just_seen_is_looked_at_again() -> None:
    horizon = Horizon()
    horizon.seen(1.0, Seen(10, NOW))
    assert horizon.beyond(1.0 + LAG - 0.01) == NOTHING


def test_what_was_seen_some_time_ago_is_left_out() -> None:
    horizon = Horizon()
    horizon.seen(1.0, Seen(10, NOW))
    horizon.seen(2.0, Seen(20, NOW))
    assert horizon.beyond(1.0 + LAG) == Seen(10, NOW)
    assert horizon.beyond(2.0 + LAG) == Seen(20, NOW)


def test_what_was_seen_never_goes_back() -> None:
    horizon = Horizon()
    horizon.seen(1.0, Seen(10, NOW))
    horizon.seen(2.0, Seen(5, NOW - timedelta(seconds=1)))
    horizon.seen(3.0, Seen(11, NOTHING.due_at))
    assert horizon.beyond(3.0 + LAG) == Seen(11, NOW)


def test_what_was_seen_but_is_still_there_is_looked_at_again() -> None:
    horizon = Horizon()
    horizon.seen(1.0, Seen(10, NOW))
    assert horizon.beyond(1.0 + LAG) == Seen(10, NOW)
    horizon.seen(4.0, Seen(20, NOW))
    horizon.stay()
    assert horizon.beyond(100.0) == Seen(10, NOW)


def test_when_it_is_forgotten_everything_is_looked_at() -> None:
    horizon = Horizon()
    horizon.seen(1.0, Seen(10, NOW))
    assert horizon.beyond(100.0) == Seen(10, NOW)
    horizon.forget()
    assert horizon.beyond(100.0) == NOTHING
    assert horizon.age == 1
