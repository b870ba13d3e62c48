"""A pivot that is done while its saga is on the way back, and what an operator does about it.

Found by `eventmesh saga verify`: each story here left behind what the pivot had done.
"""

from __future__ import annotations

from eventmesh import Saga
from tests.unit.saga.trips import TWICE, Story, Trip, add_last, add_pivot, add_step, new_saga


def pivot_between() -> Saga[Trip]:
    saga = new_saga()
    a = add_step(saga, "a", undo_retry=TWICE)
    saga.flow(a >> add_pivot(saga, "p") >> add_last(saga, "z"))
    return saga


def done_too_late() -> Story:
    """The pivot was dead-lettered, its dead letter was replayed while the saga was undone."""
    story = Story(pivot_between()).ok("a").dead_lettered("p").ok("p")
    assert (story.rule, story.status) == ("late: parked", "parked")
    return story


def test_an_undo_that_is_asked_for_while_the_pivot_is_under_way_comes_too_late() -> None:
    story = Story(pivot_between()).ok("a").operator("undo")
    assert (story.status, story.new) == ("undoing", [])
    assert story.ok("p").status == "running"
    assert story.new == ["z"]
    assert story.ok("z").status == "completed"
    assert story.record.failure is None


def test_an_undo_that_is_asked_for_while_the_pivot_is_under_way_is_done_if_that_fails() -> None:
    story = Story(pivot_between()).ok("a").operator("undo").failed("p")
    assert story.new == ["a:undo"]
    assert story.ok("a:undo").status == "undone"


def test_a_pivot_that_was_done_too_late_is_not_forgotten_when_an_undo_is_parked_too() -> None:
    story = done_too_late().dead_lettered("a:undo").dead_lettered("a:undo#2")
    assert story.ok("a:undo#2").status == "parked"
    assert story.record.parking is not None
    assert story.record.parking.unit == "p"
    assert story.operator("retry").status == "undone"


def test_a_pivot_that_was_done_too_late_is_not_forgotten_when_an_undo_is_retried() -> None:
    story = done_too_late().operator("retry", "a")
    assert story.new == ["a:undo#2"]
    assert story.ok("a:undo#2").status == "parked"
    assert story.operator("retry").status == "undone"
