"""What an operator can do with a saga: retry, skip, undo and cancel."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eventmesh import Saga
from eventmesh.errors import UsageError
from eventmesh.saga.happening import Operation
from eventmesh.saga.record import Parking
from tests.unit.saga.trips import (
    ONCE,
    TWICE,
    Approved,
    Booked,
    Did,
    Do,
    Ended,
    Story,
    Trip,
    Undo,
    UndoForm,
    add_last,
    add_pivot,
    add_step,
    new_saga,
)


def in_series(undo: UndoForm = "reply") -> Saga[Trip]:
    saga = new_saga()
    a, b = (add_step(saga, name, undo=undo, undo_retry=TWICE) for name in "ab")
    saga.flow(a >> b)
    return saga


def side_by_side() -> Saga[Trip]:
    saga = new_saga()
    a, b, c = (add_step(saga, name, undo_retry=TWICE) for name in "abc")
    saga.flow((a & b) >> c)
    return saga


def with_pivot() -> Saga[Trip]:
    saga = new_saga()
    a, p = add_step(saga, "a"), add_pivot(saga, "p")
    y, z = add_last(saga, "y", retry=TWICE), add_last(saga, "z", retry=TWICE)
    saga.flow(a >> p >> (y & z))
    return saga


# Retry


def test_a_retry_sends_again_what_waits() -> None:
    story = Story(in_series()).operator("retry")
    assert (story.rule, story.new) == ("retry by an operator", ["a#2"])
    assert story.transition.cancelled == ("a",)
    assert story.transition.timers == {"a#2": 30.0}
    assert story.ok("a").new == ["b"]


def test_a_retry_of_a_parked_undo_sends_it_again_as_often_as_its_retry_says() -> None:
    story = Story(in_series()).ok("a").failed("b").timed_out("a:undo").timed_out("a:undo#2")
    assert story.status == "parked"
    assert story.operator("retry").new == ["a:undo#3"]
    assert story.status == "undoing"
    assert story.timed_out("a:undo#3").new == ["a:undo#4"]
    assert story.timed_out("a:undo#4").status == "parked"
    assert story.operator("retry").ok("a:undo#5").status == "undone"


def test_a_retry_of_a_parked_pivot_sends_it_again() -> None:
    story = Story(with_pivot()).ok("a").timed_out("p").operator("retry")
    assert (story.status, story.new) == ("running", ["p#2"])
    assert story.ok("p#2").new == ["y", "z"]


def test_a_retry_sends_all_that_stands_still() -> None:
    story = Story(side_by_side()).ok("a", "b").failed("c")
    for label in ("a:undo", "b:undo", "a:undo#2", "b:undo#2"):
        story.timed_out(label)
    assert story.status == "parked"
    assert "undo of a" in (story.record.reason or "")
    assert "undo of b" in (story.record.reason or "")
    assert story.operator("retry").new == ["a:undo#3", "b:undo#3"]
    assert story.ok("a:undo#3", "b:undo#3").status == "undone"


def test_a_saga_stays_parked_until_nothing_stands_still() -> None:
    story = Story(with_pivot()).ok("a", "p")
    for label in ("y", "z", "y#2", "z#2"):
        story.timed_out(label)
    assert story.status == "parked"
    assert story.ok("z").status == "parked"
    assert story.operator("retry").new == ["y#3"]
    assert story.ok("y#3").status == "completed"


def test_a_retry_of_one_step_leaves_the_others_as_they_are() -> None:
    story = Story(with_pivot()).ok("a", "p")
    for label in ("y", "z", "y#2", "z#2"):
        story.timed_out(label)
    assert story.operator("retry", "y").new == ["y#3"]
    assert story.status == "parked"
    assert story.ok("y#3").status == "parked"
    assert story.operator("retry").new == ["z#3"]
    assert story.ok("z#3").status == "completed"


def test_a_retry_leaves_a_wait_and_its_time_out_as_they_are() -> None:
    saga = new_saga(key=lambda state: state.trip)
    wait = saga.wait("approval", ok=Approved, timeout="2d", correlate=lambda event: event.trip)
    saga.flow(wait & add_step(saga, "b"))
    story = Story(saga).operator("retry")
    assert story.new == ["b#2"]
    assert story.transition.cancelled == ("b",)
    assert story.timed_out("approval").status == "undoing"


def test_a_retry_sets_the_time_out_that_newer_code_has_for_a_wait() -> None:
    def waiting(timeout: str | None) -> Saga[Trip]:
        saga = new_saga(key=lambda state: state.trip)
        saga.flow(saga.wait("go", ok=Approved, timeout=timeout, correlate=lambda event: event.trip))
        return saga

    story = Story(waiting(None)).operator("retry", "go")
    assert not story.transition.has_changed
    story.deployed(waiting("2d")).operator("retry", "go")
    assert (story.transition.timers, story.new) == ({"go#2": 172_800.0}, [])
    assert story.operator("retry", "go").transition.timers == {}  # it is set
    assert story.timed_out("go#2").status == "undone"


def test_a_wait_after_the_pivot_that_timed_out_waits_again_after_a_retry() -> None:
    saga = new_saga(key=lambda state: state.trip)
    pivot = add_pivot(saga, "p")
    wait = saga.wait("approval", ok=Approved, timeout="2d", correlate=lambda event: event.trip)
    saga.flow(pivot >> wait)
    story = Story(saga).ok("p").timed_out("approval")
    assert story.status == "parked"
    assert story.operator("retry").record.waiting == ["approval"]
    assert story.transition.timers == {"approval#2": 172_800.0}
    assert story.by_key(Approved()).status == "completed"


def test_a_retry_of_what_does_not_wait_is_refused() -> None:
    with pytest.raises(UsageError, match="the saga does not wait for 'b', but for a"):
        Story(in_series()).operator("retry", "b")


def test_a_retry_of_what_was_done_after_its_undo_lets_the_saga_end() -> None:
    """The operator has dealt with the pivot's effect, which nothing undoes."""
    story = Story(with_pivot()).ok("a").dead_lettered("p").ok("p")
    assert story.status == "parked"
    story.ok("a:undo").operator("retry")
    assert story.status == "undone"


# Skip


def test_a_skip_goes_on_as_if_the_step_had_been_done() -> None:
    story = Story(in_series()).operator("skip")
    assert story.new == ["b"]
    assert story.transition.cancelled == ("a",)
    assert story.failed("b").status == "undone"
    assert story.sent == ["a", "b"]


def test_a_late_ok_of_a_skipped_step_is_undone_with_the_others() -> None:
    story = Story(in_series()).operator("skip").failed("b").ok("a")
    assert (story.rule, story.new) == ("late: undone", ["a:undo"])


def test_a_skip_of_a_parked_undo_goes_on_with_the_next_one() -> None:
    saga = new_saga()
    a, b, c = (add_step(saga, name, undo_retry=TWICE) for name in "abc")
    saga.flow(a >> b >> c)
    story = Story(saga).ok("a", "b").failed("c").timed_out("b:undo").timed_out("b:undo#2")
    assert story.operator("skip").new == ["a:undo"]
    assert story.ok("a:undo").status == "undone"


def test_a_skip_of_a_parked_pivot_takes_it_as_done() -> None:
    story = Story(with_pivot()).ok("a").timed_out("p").operator("skip")
    assert (story.status, story.new) == ("running", ["y", "z"])


def test_a_step_may_be_named_as_lists_name_it() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", each=lambda state: state.items, undo_retry=ONCE))
    story = Story(saga, Booked(items=("x", "y")))
    with pytest.raises(UsageError, match=r"waits for a\[0\], a\[1\]: say which step"):
        story.operator("skip", "a")
    story.ok("a[0]").failed("a[1]").timed_out("a[0]:undo")
    assert story.operator("retry", "a:undo").new == ["a[0]:undo#2"]
    assert story.operator("skip", "a:undo").status == "undone"


def test_the_mark_of_an_undo_leaves_out_what_is_still_to_be_done() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", each=lambda state: state.items))
    story = Story(saga, Booked(items=("x", "y"))).ok("a[0]").operator("undo")
    with pytest.raises(
        UsageError, match=r"does not wait for 'a\[1\]:undo', but for a\[0\], a\[1\]"
    ):
        story.operator("skip", "a[1]:undo")
    assert story.operator("retry", "a:undo").new == ["a[0]:undo#2"]
    assert story.operator("skip", "a:undo").status == "undoing"
    assert story.operator("skip", "a").status == "undone"


def test_a_skip_tells_what_was_skipped() -> None:
    story = Story(in_series()).operator("skip")
    assert str(story.transition.taken_for) == "a"
    story = Story(in_series()).ok("a").failed("b").timed_out("a:undo").operator("skip")
    assert str(story.transition.taken_for) == "a:undo#2"


def test_a_skip_says_which_step_where_several_wait() -> None:
    story = Story(side_by_side())
    with pytest.raises(UsageError, match="waits for a, b: say which step is to be skipped"):
        story.operator("skip")
    assert story.operator("skip", "a").record.waiting == ["b"]


def test_a_skip_of_nothing_is_refused() -> None:
    story = Story(in_series()).ok("a").failed("b")
    story.operator("skip")
    with pytest.raises(UsageError, match="the saga has ended: it is undone"):
        story.operator("skip")


# What is to be sent again after a delay


def sent_again() -> Story:
    """Its `a#2` is to be sent in five seconds."""
    saga = new_saga()
    saga.flow(add_step(saga, "a", retry=TWICE, undo_retry=TWICE) >> add_step(saga, "b"))
    story = Story(saga).failed("a")
    assert [(each.label, each.delay) for each in story.transition.sendings] == [("a#2", 5.0)]
    return story


@pytest.mark.parametrize("operation", ["skip", "cancel", "retry"])
def test_an_operator_withdraws_what_was_to_be_sent_again(operation: Operation) -> None:
    story = sent_again().operator(operation)
    assert story.transition.withdrawn == ("a#2",)
    assert "a#2" not in story.new


def test_a_retry_sends_another_attempt_than_the_one_that_it_withdraws() -> None:
    assert sent_again().operator("retry").new == ["a#3"]


@pytest.mark.parametrize("operation", ["skip", "cancel", "retry"])
def test_an_operator_withdraws_an_undo_that_was_to_be_sent_again(operation: Operation) -> None:
    story = sent_again().ok("a#2").failed("b").dead_lettered("a:undo")
    assert (story.rule, story.new) == ("sent again", ["a:undo#2"])
    assert story.operator(operation).transition.withdrawn == ("a:undo#2",)


def test_an_undo_without_ok_that_was_to_be_sent_again_is_withdrawn_by_a_cancellation() -> None:
    saga = new_saga()
    a = add_step(saga, "a", undo="silent", undo_retry=TWICE)
    saga.flow((a & add_step(saga, "c")) >> add_step(saga, "b"))
    story = Story(saga).ok("a", "c").failed("b").dead_lettered("a:undo")
    assert (story.status, story.new) == ("undoing", ["a:undo#2"])
    assert story.operator("cancel").transition.withdrawn == ("a:undo#2",)


def test_what_was_sent_is_not_withdrawn() -> None:
    for operation in ("skip", "cancel"):
        assert Story(in_series()).operator(operation).transition.withdrawn == ()


# Undo


def test_an_undo_undoes_what_was_done_and_says_so() -> None:
    story = Story(in_series()).ok("a").operator("undo")
    assert (story.status, story.new) == ("undoing", [])
    assert story.timed_out("b").new == ["a:undo"]
    assert story.ok("a:undo").endings == [Ended(how="UndoRequested")]
    assert story.record.reason == "operator: because"


def test_an_undo_waits_for_what_is_on_its_way() -> None:
    story = Story(in_series()).operator("undo").ok("a")
    assert story.new == ["a:undo"]
    assert story.ok("a:undo").status == "undone"


def test_an_undo_of_a_parked_pivot_is_possible() -> None:
    story = Story(with_pivot()).ok("a").timed_out("p").operator("undo")
    assert (story.status, story.new) == ("undoing", ["a:undo"])


def test_an_undo_after_the_pivot_is_refused() -> None:
    with pytest.raises(UsageError, match="its pivot p is done, after which nothing can be undone"):
        Story(with_pivot()).ok("a", "p").operator("undo")


def test_an_undo_of_a_saga_that_is_being_undone_is_refused() -> None:
    """It says for what the saga waits: perhaps not for an undo, but for what is on its way."""
    with pytest.raises(UsageError, match=r"is being undone already, and waits for a:undo: retry"):
        Story(in_series()).ok("a").failed("b").operator("undo")
    with pytest.raises(
        UsageError, match=r"is being undone already, and waits for a: retry or skip"
    ):
        Story(in_series()).operator("undo").operator("undo")


def test_an_undo_of_a_saga_that_is_parked_for_what_is_done_says_so() -> None:
    """Earlier versions left a saga parked so when a late ok came."""
    story = Story(in_series("state")).operator("undo").timed_out("a")
    done = replace(story.unit("a"), status="done", deadline=None)
    parking = Parking("undoing", "the undo of a failed 10 times: it is down", "a")
    record = replace(story.record, status="parked", units={"a": done}, parking=parking)
    story.transition = replace(story.transition, record=record)
    with pytest.raises(UsageError, match="is being undone already, and waits for a: retry or skip"):
        story.operator("undo")
    assert story.operator("retry").new == ["a:undo#2"]


# Cancel


def test_a_cancelled_saga_ends_as_it_is() -> None:
    story = Story(in_series()).ok("a").operator("cancel")
    assert (story.status, story.new, story.endings) == ("cancelled", [], [])
    assert story.transition.cancelled == ("b",)
    assert story.record.deadline is None
    assert story.record.waiting == []


def test_whatever_comes_after_the_cancellation_is_too_late() -> None:
    story = Story(in_series()).ok("a").operator("cancel")
    for happened in (story.ok("b"), story.timed_out("b"), story.dead_lettered("b")):
        assert happened.rule == "too late"
        assert not happened.transition.has_changed


@pytest.mark.parametrize("operation", ["retry", "skip", "undo", "cancel"])
def test_nothing_can_be_done_with_a_saga_that_has_ended(operation: str) -> None:
    with pytest.raises(UsageError, match="the saga has ended: it is completed"):
        Story(in_series()).ok("a", "b").operator(operation)  # type: ignore[arg-type]


# A saga that is parked by an error of its code


def broken() -> Saga[Trip]:
    saga = new_saga()

    @saga.step(ok=Did, timeout=None, no_undo="it has none here")
    def b(state: Trip) -> Do:
        raise KeyError("the author's mistake")

    saga.flow(add_step(saga, "a") >> b)
    return saga


@pytest.mark.parametrize("operation", ["skip", "undo"])
def test_an_error_of_the_code_can_only_be_retried_or_cancelled(operation: str) -> None:
    story = Story(broken()).ok("a")
    with pytest.raises(UsageError, match=r"parked by an error of its code .* deploy, and retry"):
        story.operator(operation)  # type: ignore[arg-type]
    assert story.operator("cancel").status == "cancelled"
    assert story.record.held == ()


def test_what_was_held_is_applied_in_its_order() -> None:
    story = Story(broken()).ok("a", part="first").ok("a", part="second").dead_lettered("a")
    assert [rule["name"] for rule in story.record.held[:2]] == ["parts.did", "parts.did"]
    story.deployed(in_series()).operator("retry")
    assert story.failed("b").commands == [Undo(what="a", reply="first")]


def test_what_was_held_and_answers_nothing_is_dropped_at_the_retry() -> None:
    """Had the saga not been parked, it would have been a dead letter."""
    story = Story(broken()).ok("a").ok("a#7")
    assert story.deployed(in_series()).operator("retry").new == ["b"]


def test_what_was_held_for_a_step_that_is_not_in_the_code_parks_the_saga_again() -> None:
    story = Story(broken()).ok("a").ok("x").deployed(in_series()).operator("retry")
    assert (story.rule, story.status, len(story.record.held)) == ("parked again", "parked", 2)
    assert "has no step x" in (story.record.reason or "")


# Several attempts of one step


def test_a_late_ok_of_another_attempt_is_undone_after_the_undo() -> None:
    """The second command may have been done after what undid the first one."""
    story = Story(in_series()).operator("retry").ok("a").failed("b").ok("a:undo")
    assert story.status == "undone"
    assert story.ok("a#2").new == ["a:undo#2"]
    assert story.ok("a#2").rule == "a duplicate"
    assert story.ok("a:undo#2").status == "undone"


def test_a_late_failure_of_an_earlier_attempt_does_not_end_a_parked_undo() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="state", retry=TWICE, undo_retry=TWICE))
    story = Story(saga).timed_out("a").timed_out("a#2")
    story.timed_out("a:undo").timed_out("a:undo#2")
    assert story.status == "parked"
    assert story.failed("a").rule == "stale"
    assert story.status == "parked"
    assert story.ok("a#2").rule == "late: undone"
