"""Up to where a relay need not read the outbox again."""

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
    """A look that takes no time and whose rows are relayed; returns what the next may leave out."""
    watermark.record(Look(at, seq, due_at, writers), at)
    return watermark.position


def test_at_first_everything_is_read() -> None:
    assert Watermark().position == START


def test_what_was_just_seen_is_read_again() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    for at in (1.5, 1.0 + SHORTEST_WAIT - 0.01, 1.0 + SHORTEST_WAIT):
        assert look(watermark, at, 10) == START


def test_what_was_seen_some_time_ago_is_left_out() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 2.0, 20)
    look(watermark, 1.0 + SHORTEST_WAIT, 20)
    assert look(watermark, 2.0 + SHORTEST_WAIT, 20) == Position(10, NOW)
    assert look(watermark, 3.0 + SHORTEST_WAIT, 20) == Position(20, NOW)


def test_the_example_of_the_documentation() -> None:
    watermark = Watermark()
    assert look(watermark, 10.2, 8, NOW, ("A",)).seq == 0
    assert look(watermark, 10.6, 8, NOW, ("A",)).seq == 0
    assert look(watermark, 12.3, 8, NOW, ()).seq == 0
    assert look(watermark, 12.4, 8, NOW, ()).seq == 8


def test_after_a_pause_everything_is_read_once_more() -> None:
    """Something may have been committed since the last look."""
    watermark = Watermark()
    look(watermark, 1.0, 10)
    assert watermark.position == START
    assert look(watermark, 100.0, 10) == START
    assert look(watermark, 100.1, 10) == Position(10, NOW)


def test_transactions_that_were_writing_are_waited_for() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10, writers=("one", "other"))
    assert look(watermark, 1.0 + SHORTEST_WAIT, 10, writers=("one", "late")) == START
    assert look(watermark, 2.0 + SHORTEST_WAIT, 10, writers=("late",)) == START
    assert look(watermark, 3.0 + SHORTEST_WAIT, 10, writers=("late", "one")) == Position(10, NOW)


def test_a_transaction_that_writes_for_ever_is_not_waited_for() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10, writers=("one",))
    assert look(watermark, LONGEST_WAIT, 10, writers=("one",)) == START
    assert look(watermark, 1.0 + LONGEST_WAIT, 10, writers=("one",)) == START
    assert look(watermark, 1.1 + LONGEST_WAIT, 10, writers=("one",)) == Position(10, NOW)


def test_a_look_that_saw_less_than_a_checkpoint_does_not_pass_it() -> None:
    """So many rows were committed late that a batch does not hold them all."""
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 5, None) == START
    assert look(watermark, 1.2 + SHORTEST_WAIT, 9, None) == START
    assert look(watermark, 1.3 + SHORTEST_WAIT, 12, None) == Position(10, START.due_at)
    assert look(watermark, 1.4 + SHORTEST_WAIT, 12) == Position(10, NOW)


def test_the_watermark_never_goes_back() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 2.0, 5, NOW - timedelta(seconds=1))
    look(watermark, 3.0, 11, None)
    look(watermark, 4.0 + SHORTEST_WAIT, 11)
    assert look(watermark, 5.0 + SHORTEST_WAIT, 11) == Position(11, NOW)


def test_rows_that_are_still_there_are_read_again() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 20) == Position(10, NOW)
    watermark.drop_checkpoints()
    look(watermark, 2.0 + 2 * SHORTEST_WAIT, 10)
    assert look(watermark, 3.0 + 2 * SHORTEST_WAIT, 10) == Position(10, NOW)


def test_after_a_reset_everything_is_read() -> None:
    watermark = Watermark()
    look(watermark, 1.0, 10)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 10) == Position(10, NOW)
    watermark.reset()
    assert watermark.position == START


def test_checkpoints_are_some_time_apart() -> None:
    watermark = Watermark()
    assert watermark.is_checkpoint_due(1.0)
    look(watermark, 1.0, 10)
    assert not watermark.is_checkpoint_due(1.0 + CHECKPOINT_INTERVAL / 2)
    assert watermark.is_checkpoint_due(1.0 + CHECKPOINT_INTERVAL)


def test_a_look_that_did_not_ask_who_is_writing_leaves_no_checkpoint() -> None:
    watermark = Watermark()
    watermark.record(Look(1.0, 10, NOW), 1.0)
    look(watermark, 1.0 + SHORTEST_WAIT, 10)
    assert look(watermark, 1.1 + SHORTEST_WAIT, 10) == START
