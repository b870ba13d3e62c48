"""What happens next in a saga: one test for each row of the table in `transition`, and for each
thing that a step can be told to do."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from datetime import date
from decimal import Decimal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from eventmesh import Event, Saga
from eventmesh.errors import UsageError
from eventmesh.saga.flow import UNTIL_PARKED
from eventmesh.saga.happening import Answered, UnexpectedAnswer, UnknownStep, WaitedTooLong
from eventmesh.saga.record import Parking
from eventmesh.saga.transition import advance, start
from services.orders import contracts as shop
from services.orders.saga import fulfil
from tests.unit.saga.trips import (
    ONCE,
    TWICE,
    Approved,
    Booked,
    Denied,
    Did,
    Do,
    Elsewhere,
    Ended,
    Failed,
    Story,
    Trip,
    Undid,
    Undo,
    UndoForm,
    add_last,
    add_pivot,
    add_step,
    new_saga,
)


def three_steps(undo: UndoForm = "reply") -> Saga[Trip]:
    saga = new_saga()
    a, b, c = (add_step(saga, name, undo=undo) for name in "abc")
    saga.flow(a >> b >> c)
    return saga


def with_pivot(**options: object) -> Saga[Trip]:
    saga = new_saga()
    a, p, z = add_step(saga, "a"), add_pivot(saga, "p"), add_last(saga, "z", **options)
    saga.flow(a >> p >> z)
    return saga


def waiting_saga() -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    a = add_step(saga, "a")
    wait = saga.wait(
        "approval", ok=Approved, failed=Denied, timeout="2d", correlate=lambda event: event.trip
    )
    saga.flow(a >> wait >> add_step(saga, "c"))
    return saga


def one_step(**options: object) -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", **options))  # type: ignore[arg-type]
    return saga


def retried_undo(**options: object) -> Saga[Trip]:
    saga = new_saga()
    a = add_step(saga, "a", undo_retry=TWICE, **options)  # type: ignore[arg-type]
    saga.flow(a >> add_step(saga, "b"))
    return saga


# The rows of the table


def test_an_ok_of_the_open_attempt_finishes_the_step_and_the_next_one_is_sent() -> None:
    story = Story(three_steps())
    assert (story.rule, story.new) == ("started", ["a"])
    assert story.ok("a").rule == "applied"
    assert story.new == ["b"]
    assert story.ok("b").new == ["c"]
    assert story.ok("c").status == "completed"
    assert story.endings == [Ended(how="completed")]


def test_an_ok_of_an_earlier_attempt_finishes_the_step_too() -> None:
    story = Story(one_step(retry=TWICE)).timed_out("a")
    assert story.new == ["a#2"]
    assert story.ok("a").rule == "applied"
    assert story.status == "completed"


@pytest.mark.parametrize("form", ["reply", "silent with reply"])
def test_a_late_ok_of_a_step_that_counts_as_failed_is_undone_with_its_reply(form: UndoForm) -> None:
    story = Story(three_steps(form)).ok("a").timed_out("b")
    assert story.new == ["a:undo"]
    if form == "reply":
        story.ok("a:undo")
    assert story.status == "undone"
    assert story.ok("b", part="late").rule == "late: undone"
    assert story.commands == [Undo(what="b", reply="late")]
    if form == "reply":
        assert story.status == "undoing"
        story.ok("b:undo")
    assert story.status == "undone"


def test_a_late_ok_that_comes_while_others_are_undone_is_undone_too() -> None:
    story = Story(three_steps()).ok("a").timed_out("b").ok("b")
    assert (story.rule, story.new, story.status) == ("late: undone", ["b:undo"], "undoing")
    assert story.ok("a:undo").status == "undoing"
    assert story.ok("b:undo").status == "undone"


def test_a_late_ok_of_a_dead_lettered_step_is_undone_too() -> None:
    story = Story(one_step()).dead_lettered("a")
    assert story.status == "undone"
    assert story.ok("a").new == ["a:undo"]


def test_a_late_ok_does_not_announce_the_end_again() -> None:
    story = Story(one_step()).timed_out("a").ok("a").ok("a:undo")
    assert story.status == "undone"
    assert story.endings == [Ended(how="TimedOut")]


@pytest.mark.parametrize("form", ["state", "optional"])
def test_an_undo_that_needs_no_reply_is_sent_at_once_and_again_for_a_late_ok(
    form: UndoForm,
) -> None:
    story = Story(one_step(undo=form)).timed_out("a")
    assert story.commands == [Undo(what="a", reply=None)]
    assert story.ok("a", part="late").rule == "late: undone"
    assert story.new == ["a:undo#2"]
    assert story.commands == [Undo(what="a", reply="late" if form == "optional" else None)]
    # The first undo may have come before what it undoes, so its answer says nothing.
    assert story.ok("a:undo").rule == "stale"
    assert story.status == "undoing"
    assert story.ok("a:undo#2").status == "undone"


def parked_by_undo(*, beside: bool = False) -> Story:
    """A saga parked for the undo of a step that has timed out; perhaps beside another such step."""
    saga = new_saga()
    a, b = (add_step(saga, name, undo="state", undo_retry=ONCE) for name in "ab")
    saga.flow(a & b if beside else a >> b)
    story = Story(saga).timed_out("a")
    if beside:
        story.timed_out("b").timed_out("b:undo")
    story.timed_out("a:undo")
    assert story.status == "parked"
    return story


def test_a_late_ok_of_the_step_whose_undo_gave_up_begins_a_new_series_of_undos() -> None:
    story = parked_by_undo().ok("a")
    assert (story.rule, story.new, story.status) == ("late: undone", ["a:undo#2"], "undoing")
    assert story.record.reason == "a: no answer within 30 s"
    assert story.ok("a:undo").rule == "stale"
    assert story.ok("a:undo#2").status == "undone"
    assert len(story.endings) == 1


def test_a_late_ok_of_one_of_two_steps_whose_undo_gave_up_waits_for_the_operator() -> None:
    for late, other in ("ab", "ba"):
        story = parked_by_undo(beside=True).ok(late)
        assert (story.rule, story.new, story.status) == ("late: to be undone", [], "parked")
        with pytest.raises(UsageError, match=f"and waits for {other}:undo: retry or skip that"):
            story.operator("undo")
        assert story.operator("skip").new == [f"{late}:undo#2"]
        assert story.ok(f"{late}:undo#2").status == "undone"


def test_a_late_ok_of_a_step_that_cannot_be_undone_yet_is_to_be_undone() -> None:
    story = Story(three_steps()).operator("skip").ok("b").failed("c").ok("a")
    assert (story.rule, story.new, story.status) == ("late: to be undone", [], "undoing")
    assert story.ok("b:undo").new == ["a:undo"]


def test_a_silent_undo_is_sent_again_for_a_late_ok() -> None:
    story = Story(one_step(undo="silent")).timed_out("a")
    assert (story.new, story.status) == (["a:undo"], "undone")
    assert story.ok("a").new == ["a:undo#2"]
    assert story.status == "undone"


def test_a_late_ok_that_nothing_can_undo_parks_the_saga() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") >> add_pivot(saga, "p"))
    story = Story(saga).ok("a").dead_lettered("p").ok("p")
    assert story.rule == "late: parked"
    assert story.status == "parked"
    assert story.record.reason == "p was done after the saga had been undone"
    assert story.record.waiting == ["a:undo"]


def test_a_late_ok_of_a_step_that_needs_no_undo_is_too_late() -> None:
    story = Story(one_step(undo="none")).timed_out("a").ok("a")
    assert (story.rule, story.status) == ("too late", "undone")


def test_an_answer_of_a_step_that_is_answered_is_a_duplicate() -> None:
    story = Story(three_steps()).ok("a")
    for answer in (Did(), Failed()):
        assert story.tell(Answered(answer, "a")).rule == "a duplicate"
        assert not story.transition.has_changed
    story.failed("b").ok("a:undo")
    for label, answer in (("a", Did()), ("b", Failed()), ("a:undo", Undid())):
        assert story.tell(Answered(answer, label)).rule == "a duplicate"
        assert (story.status, story.transition.has_changed) == ("undone", False)


def test_an_ok_after_a_failure_of_an_earlier_attempt_counts() -> None:
    """The participant has refused the second command, and done the first one after that."""
    story = Story(one_step(retry=TWICE)).timed_out("a").failed("a#2")
    assert story.status == "undone"
    assert story.ok("a").rule == "late: undone"
    assert story.new == ["a:undo"]


@pytest.mark.parametrize("how", ["failed", "timed_out", "dead_lettered"])
def test_what_fails_is_sent_again_while_its_retry_allows_and_then_undone(how: str) -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") >> add_step(saga, "b", retry=TWICE))
    story = Story(saga).ok("a")
    getattr(story, how)("b")
    assert (story.rule, story.new, story.status) == ("sent again", ["b#2"], "running")
    assert [sending.delay for sending in story.transition.sendings] == [5.0]
    assert story.transition.timers == {"b#2": 35.0}
    getattr(story, how)("b#2")
    assert (story.rule, story.new, story.status) == ("failed", ["a:undo"], "undoing")


@pytest.mark.parametrize(
    ("how", "named", "reason"),
    [
        ("failed", "Failed", "b: parts.failed"),
        ("timed_out", "TimedOut", "b: no answer within 30 s"),
        ("dead_lettered", "DeadLettered", "b: ValueError: no"),
    ],
)
def test_the_end_of_an_undone_saga_says_why(how: str, named: str, reason: str) -> None:
    story = Story(three_steps()).ok("a")
    getattr(story, how)("b")
    assert story.ok("a:undo").endings == [Ended(how=named)]
    assert story.record.reason == reason


@pytest.mark.parametrize("how", ["timed_out", "dead_lettered"])
def test_after_the_pivot_a_step_is_sent_until_the_saga_is_parked(how: str) -> None:
    story = Story(with_pivot()).ok("a", "p")
    labels = ["z", *(f"z#{number}" for number in range(2, UNTIL_PARKED.attempts + 1))]
    for label, following in itertools.pairwise(labels):
        getattr(story, how)(label)
        assert (story.rule, story.new) == ("sent again", [following])
    getattr(story, how)(labels[-1])
    assert (story.status, story.new) == ("parked", [])
    assert (story.record.reason or "").startswith("z must be done, but was not: ")
    assert story.ok("z#3").status == "completed"


def test_after_the_pivot_a_step_has_the_retry_that_it_says() -> None:
    story = Story(with_pivot(retry=TWICE)).ok("a", "p").timed_out("z").timed_out("z#2")
    assert story.status == "parked"


@pytest.mark.parametrize("how", ["failed", "timed_out", "dead_lettered"])
def test_what_happens_to_an_attempt_before_the_open_one_is_stale(how: str) -> None:
    story = Story(one_step(retry=TWICE)).timed_out("a")
    getattr(story, how)("a")
    assert (story.rule, story.transition.has_changed) == ("stale", False)
    assert story.record.waiting == ["a"]


def test_a_time_out_of_the_pivot_parks_because_nobody_knows_whether_it_was_done() -> None:
    story = Story(with_pivot()).ok("a").timed_out("p")
    assert (story.status, story.new, story.record.waiting) == ("parked", [], [])
    assert story.record.reason == "p may have been done, or not: no answer within 30 s"


def test_a_late_ok_of_the_pivot_lets_the_saga_go_on() -> None:
    story = Story(with_pivot()).ok("a").timed_out("p").ok("p")
    assert (story.status, story.new) == ("running", ["z"])
    assert story.ok("z").status == "completed"


def test_a_late_failure_of_the_pivot_lets_the_saga_be_undone() -> None:
    story = Story(with_pivot()).ok("a").timed_out("p").failed("p")
    assert (story.status, story.new) == ("undoing", ["a:undo"])
    assert story.ok("a:undo").endings == [Ended(how="Failed")]


def test_a_pivot_that_is_dead_lettered_is_undone() -> None:
    story = Story(with_pivot()).ok("a").dead_lettered("p")
    assert (story.status, story.new) == ("undoing", ["a:undo"])


@pytest.mark.parametrize("how", ["timed_out", "dead_lettered"])
def test_an_undo_is_sent_again_while_its_retry_allows_and_then_parked(how: str) -> None:
    story = Story(retried_undo()).ok("a").failed("b")
    getattr(story, how)("a:undo")
    assert (story.rule, story.new) == ("sent again", ["a:undo#2"])
    assert [sending.delay for sending in story.transition.sendings] == [5.0]
    getattr(story, how)("a:undo#2")
    assert (story.rule, story.status, story.new) == ("parked", "parked", [])
    assert (story.record.reason or "").startswith("the undo of a failed 2 times: ")
    assert story.ok("a:undo").status == "undone"
    assert story.endings == [Ended(how="Failed")]


def test_a_silent_undo_that_is_dead_lettered_is_sent_again_though_the_saga_has_ended() -> None:
    story = Story(retried_undo(undo="silent")).ok("a").failed("b")
    assert story.status == "undone"
    assert story.dead_lettered("a:undo").new == ["a:undo#2"]
    assert story.status == "undone"
    assert story.dead_lettered("a:undo#2").status == "parked"
    assert story.endings == [Ended(how="Failed")]


def test_an_event_that_answers_another_step_is_not_an_answer() -> None:
    story = Story(three_steps()).ok("a").failed("b")
    for label in ("a", "b", "c", "a:undo", "b:undo"):
        assert story.tell(Answered(Elsewhere(), label)).rule == "not an answer"
        assert not story.transition.has_changed
    assert story.tell(Answered(Did(), "a:undo")).rule == "not an answer"
    assert story.tell(Answered(Undid(), "b")).rule == "not an answer"


@pytest.mark.parametrize(
    "label", ["b", "a#2", "a:undo", "a[0]", "", "a b", "a:undone", ":undo", "a#", "1"]
)
def test_an_answer_of_a_step_that_was_never_sent_is_an_error(label: str) -> None:
    story = Story(three_steps())
    answer = Undid() if ":undo" in label else Did()
    with pytest.raises(UnexpectedAnswer):
        story.tell(Answered(answer, label))


def test_an_answer_of_a_step_that_is_not_in_the_code_may_be_known_elsewhere() -> None:
    with pytest.raises(UnknownStep, match=r"has no step x in this version of the code"):
        Story(three_steps()).ok("x")


def test_an_answer_of_an_undo_that_is_not_in_the_code_may_be_known_elsewhere() -> None:
    story = Story(three_steps()).ok("a").failed("b").deployed(three_steps(undo="none"))
    with pytest.raises(UnknownStep, match="has no undo of a in this version of the code"):
        story.ok("a:undo")


def test_an_event_by_key_before_its_step_has_begun_is_kept_for_it() -> None:
    story = Story(waiting_saga()).by_key(Approved())
    assert (story.rule, story.new) == ("early", [])
    assert story.ok("a").new == ["c"]
    assert story.record.early == {}
    assert story.ok("c").status == "completed"


def test_what_comes_while_the_saga_is_parked_by_an_error_is_held_until_the_retry() -> None:
    saga, broken = saga_and_broken()
    story = Story(broken).ok("a")
    assert (story.rule, story.status, story.new) == ("parked", "parked", [])
    assert "b failed: KeyError" in (story.record.reason or "")
    assert story.timed_out("a").rule == "held"
    assert len(story.record.held) == 2
    story.operator("retry")
    assert (story.rule, story.status) == ("parked again", "parked")
    assert len(story.record.held) == 2
    story.deployed(saga).operator("retry")
    assert (story.status, story.new, story.record.held) == ("running", ["b"], ())
    assert story.ok("b").status == "completed"


def saga_and_broken() -> tuple[Saga[Trip], Saga[Trip]]:
    """A saga, and a version of its code in which the function of b raises."""
    saga, broken = new_saga(), new_saga()
    saga.flow(add_step(saga, "a") >> add_step(saga, "b"))

    @broken.step(ok=Did, timeout=None, no_undo="it has none here")
    def b(state: Trip) -> Do:
        raise KeyError("the author's mistake")

    broken.flow(add_step(broken, "a") >> b)
    return saga, broken


# Before the first step, and at the end


def test_a_saga_whose_first_step_raises_is_parked_from_the_start() -> None:
    saga, broken = new_saga(), new_saga()
    saga.flow(add_step(saga, "b"))

    @broken.step(ok=Did, timeout=None, no_undo="it has none here")
    def b(state: Trip) -> Do:
        raise KeyError("the author's mistake")

    broken.flow(b)
    story = Story(broken)
    assert (story.status, story.new) == ("parked", [])
    story.deployed(saga).operator("retry")
    assert (story.status, story.new) == ("running", ["b"])


def test_a_saga_whose_end_raises_is_parked_and_ends_at_the_retry() -> None:
    saga = new_saga()
    a = add_step(saga, "a")
    a.done(lambda state, reply: state.model_copy(update={"breaks": True}))
    saga.flow(a)
    repaired = new_saga()
    repaired.flow(add_step(repaired, "a"))
    story = Story(saga).ok("a")
    assert (story.status, story.endings) == ("parked", [])
    assert "completed failed: ValueError" in (story.record.reason or "")
    story.deployed(repaired).operator("retry")
    assert (story.status, story.endings) == ("completed", [Ended(how="completed")])


def test_a_start_that_raises_is_the_starting_messages_failure() -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        raise KeyError("the author's mistake")

    saga.flow(add_step(saga, "a"))
    with pytest.raises(KeyError):
        start(saga.definition, Booked())


def test_a_start_that_returns_something_else_misuses_the_api() -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return None  # type: ignore[return-value]

    saga.flow(add_step(saga, "a"))
    with pytest.raises(UsageError, match="Booked starts returned NoneType in the place of Trip"):
        start(saga.definition, Booked())


def test_nothing_happens_after_the_end() -> None:
    story = Story(three_steps()).ok("a", "b", "c")
    for label in ("a", "b", "c"):
        for answer in (Did(), Failed(), Undid()):
            story.tell(Answered(answer, label))
            assert not story.transition.has_changed
        story.timed_out(label).dead_lettered(label)
        assert not story.transition.has_changed


def test_a_saga_announces_its_end_once() -> None:
    story = Story(three_steps()).ok("a", "b").failed("c").ok("b:undo", "a:undo")
    assert story.endings == [Ended(how="Failed")]
    story.ok("c").ok("c:undo").ok("b:undo", "a:undo")
    assert story.endings == [Ended(how="Failed")]


def test_the_transition_is_pure() -> None:
    definition = three_steps().definition
    assert start(definition, Booked()) == start(definition, Booked())
    record = start(definition, Booked()).record
    before = copy.deepcopy(record)
    for answer in (Did(), Failed(), Undid()):
        happening = Answered(answer, "a")
        assert advance(definition, record, happening) == advance(definition, record, happening)
        assert record == before


# Time-outs


def test_each_command_has_its_time_out_which_is_cancelled_by_the_answer() -> None:
    story = Story(three_steps())
    assert story.transition.timers == {"a": 30.0}
    story.ok("a")
    assert story.transition.cancelled == ("a",)
    assert story.transition.timers == {"b": 30.0}
    story.failed("b")
    assert story.transition.cancelled == ("b",)
    assert story.transition.timers == {"a:undo": 60.0}
    story.ok("a:undo")
    assert story.transition.cancelled == ("a:undo",)


def test_the_deadline_that_people_see_is_that_of_the_first_time_out() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") & add_step(saga, "b", timeout="10s"))
    story = Story(saga, now=100.0)
    assert story.record.deadline == 110.0
    assert story.ok("b").record.deadline == 130.0
    assert story.ok("a").record.deadline is None


def test_without_a_time_out_a_step_is_waited_for_for_ever() -> None:
    story = Story(one_step(timeout=None), now=100.0)
    assert story.transition.timers == {}
    assert story.record.deadline is None
    story.ok("a")
    assert story.transition.cancelled == ()


def test_a_step_that_is_answered_before_its_time_out_is_set_sets_none() -> None:
    """The event was early: it answers the wait in the transition that begins it."""
    story = Story(waiting_saga()).by_key(Approved()).ok("a")
    assert story.transition.timers == {"c": 30.0}
    assert story.transition.cancelled == ("a",)


# What is to be sent again after a delay


def test_the_ok_of_an_earlier_attempt_withdraws_the_one_that_was_to_be_sent() -> None:
    story = Story(one_step(retry=TWICE)).timed_out("a").ok("a")
    assert story.transition.withdrawn == ("a#2",)
    assert story.status == "completed"


def test_the_ok_of_what_was_sent_again_withdraws_nothing() -> None:
    story = Story(one_step(retry=TWICE)).timed_out("a").ok("a#2")
    assert story.transition.withdrawn == ()


def test_the_confirmation_of_an_earlier_undo_withdraws_the_one_that_was_to_be_sent() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo_retry=TWICE) >> add_step(saga, "b"))
    story = Story(saga).ok("a").failed("b").timed_out("a:undo").ok("a:undo")
    assert story.transition.withdrawn == ("a:undo#2",)
    assert story.status == "undone"


def test_a_late_answer_withdraws_the_undo_that_was_to_be_sent_before_it() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="state", undo_retry=TWICE))
    story = Story(saga).timed_out("a").timed_out("a:undo").ok("a")
    assert story.transition.withdrawn == ("a:undo#2",)
    assert story.new == ["a:undo#3"]


def test_what_is_sent_again_and_answered_in_one_transition_is_not_sent() -> None:
    """Both came while the saga was parked by an error of its code."""
    saga = new_saga()
    saga.flow(add_step(saga, "a", retry=TWICE) & add_step(saga, "b"))
    story = Story(saga)
    parking = Parking("running", "the author's mistake", None)
    record = replace(story.record, status="parked", parking=parking)
    story.transition = replace(story.transition, record=record)
    story.timed_out("a").ok("a").operator("retry")
    assert (story.new, story.transition.withdrawn) == ([], ())
    assert story.record.waiting == ["b"]


# The order of undos


def test_undos_come_in_the_reverse_order_and_each_is_waited_for() -> None:
    story = Story(three_steps()).ok("a", "b").failed("c")
    assert story.new == ["b:undo"]
    assert story.ok("b:undo").new == ["a:undo"]
    assert story.ok("a:undo").status == "undone"
    assert story.sent == ["a", "b", "c", "b:undo", "a:undo"]


def test_silent_undos_are_all_sent_at_once_and_the_saga_is_over() -> None:
    story = Story(three_steps("silent")).ok("a", "b").failed("c")
    assert story.new == ["b:undo", "a:undo"]
    assert (story.status, story.endings) == ("undone", [Ended(how="Failed")])


def test_a_step_without_an_undo_is_passed_over() -> None:
    saga = new_saga()
    saga.flow(
        add_step(saga, "a") >> add_step(saga, "b", undo="none") >> add_step(saga, "c", undo="none")
    )
    assert Story(saga).ok("a", "b").failed("c").new == ["a:undo"]


def test_an_undo_gets_the_reply_that_its_own_step_got() -> None:
    story = Story(three_steps("silent with reply")).ok("a", part="first").ok("b", part="second")
    assert story.failed("c").commands == [
        Undo(what="b", reply="second"),
        Undo(what="a", reply="first"),
    ]


class Signed(Event, name="parts.signed", version=1, strict=True):
    part_id: UUID = Field(alias="partId")
    on: date


class StrictState(BaseModel, strict=True):
    trip_id: UUID = Field(alias="tripId")
    on: date


def test_strict_models_with_aliases_come_back_as_they_were() -> None:
    saga = Saga("trips.strict", StrictState)

    @saga.starts
    def begin(event: Booked) -> StrictState:
        return StrictState(tripId=UUID(int=1), on=date(2026, 1, 2))

    @saga.step(ok=Signed, timeout="1m")
    def sign(state: StrictState) -> Do:
        return Do(what=f"sign {state.trip_id} on {state.on}")

    @sign.undo()
    def tear_up(state: StrictState, reply: Signed) -> Undo:
        return Undo(what=f"{state.on}", reply=f"{reply.part_id} of {reply.on}")

    @saga.step(ok=Did, failed=Failed, timeout="1m", no_undo="it only reads")
    def check(state: StrictState) -> Do:
        return Do(what="check")

    saga.flow(sign >> check)
    story = Story(saga.definition)
    story.tell(Answered(Signed(partId=UUID(int=3), on=date(2026, 3, 4)), "sign"))  # type: ignore[call-arg]
    assert story.failed("check").commands == [
        Undo(what="2026-01-02", reply=f"{UUID(int=3)} of 2026-03-04")
    ]


def test_a_step_beside_a_failed_one_is_awaited_and_then_undone() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") & add_step(saga, "b"))
    story = Story(saga).failed("a")
    assert (story.status, story.new) == ("undoing", [])
    assert story.ok("b").new == ["b:undo"]
    assert story.ok("b:undo").status == "undone"


def test_the_reason_is_the_first_failure_in_time() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") & add_step(saga, "b"))
    assert Story(saga).failed("b").failed("a").record.reason == "b: parts.failed"


def test_a_step_is_not_sent_again_once_another_has_failed() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", retry=TWICE) & add_step(saga, "b"))
    story = Story(saga).failed("b").failed("a")
    assert (story.rule, story.status) == ("failed", "undone")


def test_steps_are_known_by_name_so_a_new_order_of_the_code_breaks_no_saga_under_way() -> None:
    reordered = new_saga()
    a, b, c = (add_step(reordered, name) for name in "abc")
    reordered.flow(a >> c >> b)
    story = Story(three_steps()).ok("a").deployed(reordered).ok("b")
    assert story.new == ["c"]
    assert story.ok("c").status == "completed"


# when=, each=, done, starts


def test_a_step_whose_condition_is_false_is_skipped() -> None:
    saga = new_saga()
    a, b = add_step(saga, "a", when=lambda state: state.wanted), add_step(saga, "b")
    saga.flow(a >> b)
    assert Story(saga, Booked(wanted=True)).new == ["a"]
    story = Story(saga, Booked(wanted=False))
    assert story.new == ["b"]
    assert story.unit("a").status == "skipped"
    assert story.failed("b").status == "undone"
    assert story.sent == ["b"]


def test_a_saga_whose_steps_are_all_skipped_is_completed_at_once() -> None:
    story = Story(one_step(when=lambda state: False))
    assert (story.status, story.endings) == ("completed", [Ended(how="completed")])


def test_a_condition_is_asked_when_its_step_can_begin() -> None:
    saga = new_saga()
    a, b = add_step(saga, "a"), add_step(saga, "b", when=lambda state: "a" in state.seen)
    a.done(lambda state, reply: state.model_copy(update={"seen": ("a",)}))
    saga.flow(a >> b)
    assert Story(saga).ok("a").new == ["b"]


def test_a_step_with_items_sends_a_command_for_each() -> None:
    saga = new_saga()
    pick = add_step(saga, "pick", each=lambda state: state.items, retry=TWICE)
    saga.flow(pick >> add_step(saga, "b"))
    story = Story(saga, Booked(items=("x", "y", "z")))
    assert story.new == ["pick[0]", "pick[1]", "pick[2]"]
    assert story.commands == [Do(what="pick x"), Do(what="pick y"), Do(what="pick z")]
    assert story.timed_out("pick[1]").commands == [Do(what="pick y")]
    assert story.new == ["pick[1]#2"]
    assert story.ok("pick[2]", "pick[0]").new == []
    assert story.ok("pick[1]#2").new == ["b"]
    assert story.failed("b").new == ["pick[0]:undo", "pick[1]:undo", "pick[2]:undo"]
    assert story.ok("pick[2]:undo", "pick[0]:undo").status == "undoing"
    assert story.ok("pick[1]:undo").status == "undone"


def test_of_the_items_only_those_that_were_done_are_undone() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "pick", each=lambda state: state.items))
    story = Story(saga, Booked(items=("x", "y"))).ok("pick[0]").failed("pick[1]")
    assert story.new == ["pick[0]:undo"]
    assert story.ok("pick[0]:undo").status == "undone"


def of_items(undo: UndoForm) -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "pick", each=lambda state: state.items, undo=undo))
    return saga


@pytest.mark.parametrize("form", ["item", "item and optional"])
def test_an_undo_knows_its_item_also_when_nobody_has_answered(form: UndoForm) -> None:
    story = Story(of_items(form), Booked(items=("x", "y"))).timed_out("pick[0]")
    assert story.commands == [Undo(what="pick x")]
    assert story.dead_lettered("pick[1]").commands == [Undo(what="pick y")]
    assert story.timed_out("pick[1]:undo").commands == [Undo(what="pick y")]


def test_an_undo_of_an_item_may_take_its_reply_too() -> None:
    story = Story(of_items("item and optional"), Booked(items=("x", "y")))
    story.ok("pick[1]", part="a pear").timed_out("pick[0]")
    assert story.commands == [Undo(what="pick x"), Undo(what="pick y", reply="a pear")]


@pytest.mark.parametrize(("form", "what"), [("item and reply", "pick y"), ("reply", "pick")])
def test_an_undo_of_an_item_that_needs_its_reply_waits_for_it(form: UndoForm, what: str) -> None:
    story = Story(of_items(form), Booked(items=("x", "y"))).ok("pick[0]").timed_out("pick[1]")
    assert story.new == ["pick[0]:undo"]
    assert story.ok("pick[1]", part="late").commands == [Undo(what=what, reply="late")]


def test_an_undo_whose_item_is_gone_parks_the_saga() -> None:
    saga = new_saga()
    pick = add_step(saga, "pick", each=lambda state: state.items, undo="item")
    pick.done(lambda state, reply: state.model_copy(update={"items": ()}))
    saga.flow(pick)
    story = Story(saga, Booked(items=("x",))).ok("pick[0]")
    assert story.status == "completed"
    story = Story(saga, Booked(items=("x", "y"))).ok("pick[0]").failed("pick[1]")
    assert story.status == "parked"
    assert "and while it may be undone" in (story.record.reason or "")


def test_the_reply_of_an_item_is_folded_together_with_the_item() -> None:
    saga = new_saga()
    pick = add_step(saga, "pick", each=lambda state: state.items)

    @pick.done  # type: ignore[arg-type]  # `add_step` does not say what the items are
    def keep(state: Trip, item: str, reply: Did) -> Trip:
        return state.model_copy(update={"seen": (*state.seen, f"{item}: {reply.part}")})

    saga.flow(pick)
    story = Story(saga, Booked(items=("x", "y"))).ok("pick[1]", part="a pear")
    assert story.ok("pick[0]", part="a fig").record.state == Trip(
        items=("x", "y"), seen=("y: a pear", "x: a fig")
    )


def test_a_step_without_items_is_done_at_once() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "pick", each=lambda state: state.items) >> add_step(saga, "b"))
    story = Story(saga)
    assert story.new == ["b"]
    assert story.failed("b").status == "undone"


def test_the_items_must_stay_as_they_are_while_the_step_runs() -> None:
    saga = new_saga()
    pick = add_step(saga, "pick", each=lambda state: state.items, retry=TWICE)
    pick.done(lambda state, reply: state.model_copy(update={"items": ()}))
    saga.flow(pick)
    story = Story(saga, Booked(items=("x", "y"))).ok("pick[0]").timed_out("pick[1]")
    assert story.status == "parked"
    assert "it must stay as it is while the step runs" in (story.record.reason or "")


def test_a_reply_is_folded_into_the_state_for_the_later_steps() -> None:
    saga = new_saga()
    a = add_step(saga, "a")

    @a.done
    def keep(state: Trip, reply: Did) -> Trip:
        return state.model_copy(update={"seen": (*state.seen, reply.part)})

    @saga.step(ok=Did, timeout=None, no_undo="it only tells")
    def tell(state: Trip) -> Do:
        return Do(what=" ".join(state.seen))

    saga.flow(a >> tell)
    assert Story(saga).ok("a", part="window").commands == [Do(what="window")]


def test_a_function_that_returns_something_else_parks_the_saga() -> None:
    forgotten = new_saga()
    a = add_step(forgotten, "a")
    a.done(lambda state, reply: None)  # type: ignore[arg-type, return-value]
    forgotten.flow(a >> add_step(forgotten, "b"))
    story = Story(forgotten).ok("a")
    assert story.status == "parked"
    assert "returned NoneType in the place of Trip" in (story.record.reason or "")
    saga = new_saga()
    saga.flow(add_step(saga, "pick", each=lambda state: (each for each in state.items)))
    assert "returned generator in the place of Sequence" in (Story(saga).record.reason or "")
    saga = new_saga()

    @saga.step(ok=Did, timeout=None, no_undo="none")
    def b(state: Trip) -> Do:
        return None  # type: ignore[return-value]

    saga.flow(b)
    assert Story(saga).record.reason == "b returned NoneType in the place of Command"


def test_a_reply_that_comes_again_is_folded_once() -> None:
    saga = new_saga()
    a, b = add_step(saga, "a"), add_step(saga, "b")
    a.done(lambda state, reply: state.model_copy(update={"seen": (*state.seen, reply.part)}))
    saga.flow(a >> b)
    state = Story(saga).ok("a").ok("a").record.state
    assert isinstance(state, Trip)
    assert state.seen == ("a part",)


class OtherStart(Event, name="trips.rebooked", version=1):
    trip: int


def test_each_message_that_starts_a_saga_has_its_function() -> None:
    saga = new_saga()

    @saga.starts
    def rebook(event: OtherStart) -> Trip:
        return Trip(trip=event.trip)

    saga.flow(add_step(saga, "a"))
    assert Story(saga).record.state == Trip()
    assert Story(saga, OtherStart(trip=7)).record.state == Trip(trip=7)


def test_a_child_saga_knows_the_step_of_its_parent_to_the_end() -> None:
    story = Story(one_step(), parent=("orders.fulfil/1", "ship#2"), correlation="c")
    story.ok("a")
    assert story.record.parent == ("orders.fulfil/1", "ship#2")
    assert story.record.correlation == "c"


# Waits, and events by key


def test_a_wait_sends_nothing_and_goes_on_with_its_event() -> None:
    story = Story(waiting_saga()).ok("a")
    assert (story.new, story.record.waiting) == ([], ["approval"])
    assert story.transition.timers == {"approval": 172_800.0}
    assert story.by_key(Approved()).new == ["c"]
    assert story.by_key(Approved()).rule == "a duplicate"


def test_a_wait_fails_by_its_event_or_its_time_out() -> None:
    assert Story(waiting_saga()).ok("a").by_key(Denied()).new == ["a:undo"]
    story = Story(waiting_saga()).ok("a").timed_out("approval")
    assert story.new == ["a:undo"]
    assert story.ok("a:undo").endings == [Ended(how="TimedOut")]


def test_an_early_failure_is_kept_for_its_step_too() -> None:
    story = Story(waiting_saga()).by_key(Denied()).ok("a")
    assert (story.status, story.new) == ("undoing", ["a:undo"])
    assert story.ok("a:undo").endings == [Ended(how="Denied")]


def test_of_two_early_events_the_first_one_counts() -> None:
    story = Story(waiting_saga()).by_key(Denied()).by_key(Approved())
    assert story.ok("a").status == "undoing"


def test_an_early_event_of_a_step_that_is_skipped_is_dropped() -> None:
    saga = new_saga(key=lambda state: state.trip)
    wait = saga.wait(
        "approval",
        ok=Approved,
        timeout=None,
        correlate=lambda event: event.trip,
        when=lambda state: state.wanted,
    )
    saga.flow(add_step(saga, "a") >> wait >> add_step(saga, "c"))
    story = Story(saga, Booked(wanted=False)).by_key(Approved()).ok("a")
    assert (story.new, story.record.early) == (["c"], {})


def test_an_event_by_key_of_a_saga_that_is_being_undone_is_too_late() -> None:
    story = Story(waiting_saga()).failed("a").by_key(Approved())
    assert (story.rule, story.transition.has_changed) == ("too late", False)


def test_a_step_that_sends_may_be_answered_by_key_too() -> None:
    saga = new_saga(key=lambda state: state.trip)
    saga.flow(add_step(saga, "a", correlate=lambda event: 1, retry=TWICE))
    assert Story(saga).by_key(Did()).status == "completed"
    assert Story(saga).timed_out("a").by_key(Did()).status == "completed"


def answered_by_key() -> Saga[Trip]:
    """Two steps with commands, one after the other, whose answers are found by key."""
    saga = new_saga(key=lambda state: state.trip)
    a, b = (add_step(saga, name, undo="state", correlate=lambda event: 1) for name in "ab")
    saga.flow(a >> b)
    return saga


def test_a_late_answer_by_key_is_for_the_step_that_counts_as_failed() -> None:
    """Not for the one that has not begun, and never will."""
    story = Story(answered_by_key()).timed_out("a").ok("a:undo")
    assert story.status == "undone"
    assert story.by_key(Did()).new == ["a:undo#2"]
    assert (story.status, story.rule) == ("undoing", "late: undone")


def test_a_late_answer_by_key_is_not_for_the_step_that_is_done() -> None:
    story = Story(answered_by_key()).by_key(Did()).timed_out("b").ok("b:undo").ok("a:undo")
    assert story.status == "undone"
    assert story.by_key(Did()).new == ["b:undo#2"]


def test_each_late_answer_by_key_of_a_step_that_was_sent_twice_is_undone() -> None:
    """Nobody can tell whether the second one is a duplicate."""
    saga = new_saga(key=lambda state: state.trip)
    saga.flow(add_step(saga, "a", undo="state", correlate=lambda event: 1, retry=TWICE))
    story = Story(saga).timed_out("a").timed_out("a#2").ok("a:undo")
    assert story.by_key(Did()).new == ["a:undo#2"]
    assert story.ok("a:undo#2").by_key(Did()).new == ["a:undo#3"]
    once = Story(answered_by_key()).timed_out("a").ok("a:undo").by_key(Did()).ok("a:undo#2")
    assert once.by_key(Did()).rule == "a duplicate"


def test_an_event_by_key_that_comes_while_an_earlier_step_is_parked_is_kept() -> None:
    saga = new_saga(key=lambda state: state.trip)
    confirmed = saga.wait(
        "confirmed", ok=Approved, timeout=None, correlate=lambda event: event.trip
    )
    saga.flow(add_pivot(saga, "p") >> confirmed)
    story = Story(saga).timed_out("p")
    assert story.status == "parked"
    assert story.by_key(Approved()).rule == "early"
    assert story.ok("p").status == "completed"


def test_two_waits_for_one_event_take_one_each() -> None:
    saga = new_saga(key=lambda state: state.trip)
    one, other = (
        saga.wait(name, ok=Approved, timeout=None, correlate=lambda event: event.trip)
        for name in ("one", "other")
    )
    saga.flow(one >> other)
    assert Story(saga).by_key(Approved()).record.waiting == ["other"]
    assert Story(saga).by_key(Approved()).by_key(Approved()).status == "completed"


def test_a_wait_beside_a_step_that_failed_is_given_up() -> None:
    saga = new_saga(key=lambda state: state.trip)
    wait = saga.wait("approval", ok=Approved, timeout="2d", correlate=lambda event: event.trip)
    saga.flow(wait & add_step(saga, "b"))
    story = Story(saga).failed("b")
    assert story.status == "undone"
    assert "approval" in story.transition.cancelled


# The shop, told as a story


ORDER = UUID(int=1)
PLACED = shop.OrderPlaced.model_validate(
    {"order_id": ORDER, "card": "c", "sku": "s", "quantity": 2, "amount": "9.90"}
)
RESERVED = shop.StockReserved(order_id=ORDER)
CAPTURED = shop.PaymentCaptured(order_id=ORDER, payment_id=UUID(int=2))


def told(*answers: tuple[str, Event]) -> Story:
    story = Story(fulfil.definition, PLACED)
    for label, event in answers:
        story.tell(Answered(event, label))
    return story


def test_an_order_is_reserved_and_paid_then_shipped_and_closed() -> None:
    assert told().new == ["reserve", "capture"]
    assert told(("capture", CAPTURED)).new == []
    assert told(("capture", CAPTURED), ("reserve", RESERVED)).new == ["ship"]
    shipped = shop.OrderShipped(order_id=ORDER, tracking_number="T1")
    end = told(("capture", CAPTURED), ("reserve", RESERVED), ("ship", shipped))
    assert end.endings == [shop.OrderClosed(order_id=ORDER)]


def test_an_order_that_cannot_be_shipped_gives_back_money_and_stock() -> None:
    refused = shop.ShipmentRefused(order_id=ORDER, reason="too heavy")
    story = told(("reserve", RESERVED), ("capture", CAPTURED), ("ship", refused))
    assert story.commands == [
        shop.ReleaseStock(order_id=ORDER),
        shop.RefundPayment(order_id=ORDER, payment_id=UUID(int=2)),
    ]
    story.tell(Answered(shop.PaymentRefunded(order_id=ORDER), "capture:undo"))
    story.tell(Answered(shop.StockReleased(order_id=ORDER), "reserve:undo"))
    assert story.endings == [shop.OrderCancelled(order_id=ORDER, reason="too heavy")]


def test_a_large_order_waits_for_a_decision_that_finds_it_by_its_id() -> None:
    large = PLACED.model_copy(update={"amount": Decimal(100)})
    story = Story(fulfil.definition, large)
    for label, event in (("reserve", RESERVED), ("capture", CAPTURED)):
        story.tell(Answered(event, label))
    assert story.new == ["approve"]
    rejected = shop.OrderRejected(order_id=ORDER, decided_by="ann", reason="too much")
    story.tell(Answered(rejected, None))
    assert sorted(story.new) == ["capture:undo", "reserve:undo"]


def test_an_order_whose_payment_times_out_is_refunded_once_the_late_answer_comes() -> None:
    story = told(("reserve", RESERVED)).tell(WaitedTooLong("capture"))
    assert story.new == ["reserve:undo"]
    story.tell(Answered(shop.StockReleased(order_id=ORDER), "reserve:undo"))
    assert story.status == "undone"
    story.tell(Answered(CAPTURED, "capture"))
    assert (story.status, story.new) == ("undoing", ["capture:undo"])


def test_an_order_of_what_is_not_there_is_cancelled_once_its_payment_is_known() -> None:
    nothing = shop.OutOfStock(order_id=ORDER)
    story = told(("reserve", nothing), ("reserve#2", nothing))  # a delivery may be under way
    assert (story.status, story.new) == ("running", ["reserve#3"])
    story.tell(Answered(nothing, "reserve#3"))
    assert (story.status, story.new) == ("undoing", [])
    declined = shop.PaymentDeclined(order_id=ORDER, reason="no funds")
    story.tell(Answered(declined, "capture"))
    assert story.endings == [shop.OrderCancelled(order_id=ORDER, reason="out of stock")]
