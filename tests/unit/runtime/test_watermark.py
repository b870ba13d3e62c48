"""The position in the outbox up to which a relay need not read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from eventmesh.persistence.outbox import START, Position
from eventmesh.runtime.relaying.watermark import (
    CHECKPOINT_INTERVAL,
    LONGEST_WAIT,
    SHORTEST_WAIT,
    Look,
    Watermark,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def look(
    watermark: Watermark,
    at: float,
    seq: int,
    due_at: datetime | None = NOW,
    writers: tuple[str, ...] = (),
) -> Position:
    """Record a look that takes no time and whose rows are relayed; returns the new watermark."""
    watermark.record(Look(at, seq, due_at, writers), at)
    return watermark.position


def test_the_watermark_starts_at_the_beginning() -> None:
    assert Watermark().position == START


def test_recently_seen_rows_are_read_again() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    for at in (1.5, 1.0 + SHORTEST_WAIT - 0.01, 1.0 + SHORTEST_WAIT):
        assert look(watermark, at, 10) == START


def test_rows_seen_long_enough_ago_are_not_read_again() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 2.0, 20)
    look(watermark, 1.0 + SHORTEST_WAIT, 20)
    assert look(watermark, 2.0 + SHORTEST_WAIT, 20) == Position(10, NOW)
    assert look(watermark, 3.0 + SHORTEST_WAIT, 20) == Position(20, NOW)


def test_the_example_of_the_module_docstring() -> None:
    watermark = Watermark()
    assert look(watermark, 10.2, 8, NOW, ("A",)).seq == 0
    assert look(watermark, 10.6, 8, NOW, ("A",)).seq == 0
    assert look(watermark, 12.3, 8, NOW, ()).seq == 0
    assert look(watermark, 12.4, 8, NOW, ()).seq == 8


def test_after_a_pause_all_rows_are_read_once_more() -> None:
    """Rows may have been committed since the last look."""
    watermark = Watermark()
    look(watermark, 1.0, 10)
    assert watermark.position == START
    assert look(watermark, 100.0, 10) == START
    assert look(watermark, 100.1, 10) == Position(10, NOW)


def test_the_watermark_waits_for_transactions_that_were_writing() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10, writers=("one", "other"))
    assert look(watermark, 1.0 + SHORTEST_WAIT, 10, writers=("one", "late")) == START
    assert look(watermark, 2.0 + SHORTEST_WAIT, 10, writers=("late",)) == START
    assert look(watermark, 3.0 + SHORTEST_WAIT, 10, writers=("late", "one")) == Position(10, NOW)


def test_the_watermark_does_not_wait_longer_than_a_limit_for_a_transaction() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10, writers=("one",))
    assert look(watermark, LONGEST_WAIT, 10, writers=("one",)) == START
    assert look(watermark, 1.0 + LONGEST_WAIT, 10, writers=("one",)) == START
    assert look(watermark, 1.1 + LONGEST_WAIT, 10, writers=("one",)) == Position(10, NOW)


def test_a_look_that_does_not_reach_a_checkpoint_does_not_confirm_it() -> None:
    """So many rows were committed late that they do not fit into one batch."""
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 5, None) == START
    assert look(watermark, 1.2 + SHORTEST_WAIT, 9, None) == START
    assert look(watermark, 1.3 + SHORTEST_WAIT, 12, None) == Position(10, START.due_at)
    assert look(watermark, 1.4 + SHORTEST_WAIT, 12) == Position(10, NOW)


def test_the_watermark_never_moves_back() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 2.0, 5, NOW - timedelta(seconds=1))
    look(watermark, 3.0, 11, None)
    look(watermark, 4.0 + SHORTEST_WAIT, 11)
    assert look(watermark, 5.0 + SHORTEST_WAIT, 11) == Position(11, NOW)


def test_rows_that_could_not_be_relayed_are_read_again() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 20) == Position(10, NOW)
    watermark.drop_checkpoints()
    look(watermark, 2.0 + 2 * SHORTEST_WAIT, 10)
    assert look(watermark, 3.0 + 2 * SHORTEST_WAIT, 10) == Position(10, NOW)


def test_a_reset_moves_the_watermark_to_the_beginning() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 10) == Position(10, NOW)
    watermark.reset()
    assert watermark.position == START


def test_checkpoints_have_a_minimum_interval() -> None:
    watermark = Watermark()
    assert watermark.is_checkpoint_due(1.0)
    look(watermark, 1.0, 10)
    assert not watermark.is_checkpoint_due(1.0 + CHECKPOINT_INTERVAL / 2)
    assert watermark.is_checkpoint_due(1.0 + CHECKPOINT_INTERVAL)


def test_a_look_without_the_writing_transactions_creates_no_checkpoint() -> None:
    watermark = Watermark()
    watermark.record(Look(1.0, 10, NOW), 1.0)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 10) == START
