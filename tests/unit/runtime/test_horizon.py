"""What a relay may leave out when it looks into the outbox."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from eventmesh.persistence.outbox import START, Position
from eventmesh.runtime.relaying.watermark import LAG, PATIENCE, STEP, Horizon

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def look(
    horizon: Horizon,
    at: float,
    seq: int,
    due_at: datetime | None = NOW,
    writers: tuple[str, ...] = (),
) -> Position:
    """A look that takes no time and whose rows are relayed; returns what the next may leave out."""
    horizon.seen(at, seq, due_at)
    horizon.mark(at, seq, due_at, writers)
    return horizon.beyond


def test_at_first_everything_is_looked_at() -> None:
    assert Horizon().beyond == START


def test_what_was_just_seen_is_looked_at_again() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10)
    for at in (1.5, 1.0 + LAG - 0.01, 1.0 + LAG):
        assert look(horizon, at, 10) == START


def test_what_was_seen_some_time_ago_is_left_out() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10)
    look(horizon, 2.0, 20)
    look(horizon, 1.0 + LAG, 20)
    assert look(horizon, 2.0 + LAG, 20) == Position(10, NOW)
    assert look(horizon, 3.0 + LAG, 20) == Position(20, NOW)


def test_after_a_standstill_everything_is_looked_at_once_more() -> None:
    """Something may have been committed since the last look."""
    horizon = Horizon()
    look(horizon, 1.0, 10)
    assert horizon.beyond == START
    assert look(horizon, 100.0, 10) == START
    assert look(horizon, 100.1, 10) == Position(10, NOW)


def test_who_was_writing_is_waited_for() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10, writers=("one", "other"))
    assert look(horizon, 1.0 + LAG, 10, writers=("one", "late")) == START
    assert look(horizon, 2.0 + LAG, 10, writers=("late",)) == START
    assert look(horizon, 3.0 + LAG, 10, writers=("late", "one")) == Position(10, NOW)


def test_who_writes_for_ever_is_not() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10, writers=("one",))
    assert look(horizon, PATIENCE, 10, writers=("one",)) == START
    assert look(horizon, 1.0 + PATIENCE, 10, writers=("one",)) == START
    assert look(horizon, 1.1 + PATIENCE, 10, writers=("one",)) == Position(10, NOW)


def test_a_look_that_saw_less_does_not_move_further() -> None:
    """So many rows came late that a batch does not hold them all."""
    horizon = Horizon()
    look(horizon, 1.0, 10)
    look(horizon, 1.0 + LAG, 10)
    assert look(horizon, 1.1 + LAG, 5, None) == START
    assert look(horizon, 1.2 + LAG, 9, None) == START
    assert look(horizon, 1.3 + LAG, 12, None) == Position(10, START.due_at)
    assert look(horizon, 1.4 + LAG, 12) == Position(10, NOW)


def test_what_was_seen_never_goes_back() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10)
    look(horizon, 2.0, 5, NOW - timedelta(seconds=1))
    look(horizon, 3.0, 11, None)
    look(horizon, 4.0 + LAG, 11)
    assert look(horizon, 5.0 + LAG, 11) == Position(11, NOW)


def test_what_was_seen_but_is_still_there_is_looked_at_again() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10)
    look(horizon, 1.0 + LAG, 10)
    assert look(horizon, 1.1 + LAG, 20) == Position(10, NOW)
    horizon.stay()
    look(horizon, 2.0 + 2 * LAG, 10)
    assert look(horizon, 3.0 + 2 * LAG, 10) == Position(10, NOW)


def test_when_it_is_forgotten_everything_is_looked_at() -> None:
    horizon = Horizon()
    look(horizon, 1.0, 10)
    look(horizon, 1.0 + LAG, 10)
    assert look(horizon, 1.1 + LAG, 10) == Position(10, NOW)
    horizon.forget()
    assert horizon.beyond == START


def test_marks_are_some_time_apart() -> None:
    horizon = Horizon()
    assert horizon.wants_mark(1.0)
    look(horizon, 1.0, 10)
    assert not horizon.wants_mark(1.0 + STEP / 2)
    assert horizon.wants_mark(1.0 + STEP)
