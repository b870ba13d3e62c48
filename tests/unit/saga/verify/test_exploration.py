"""The exploration visits what can happen: its reductions lose nothing, and bounds are said."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from eventmesh import Event, Saga
from eventmesh.saga import transition as production
from eventmesh.saga.draft import Draft
from eventmesh.saga.verify.exploration import Bounds, Explored, Reductions, base_of, explore
from eventmesh.saga.verify.report import verify
from eventmesh.saga.verify.rules import Rules
from eventmesh.saga.verify.story import scenes
from services.orders.saga import fulfil
from tests.unit.saga.trips import (
    ONCE,
    TWICE,
    Approved,
    Denied,
    Elsewhere,
    Trip,
    add_last,
    add_pivot,
    add_step,
    new_saga,
)

NOTHING_LEFT_OUT = Reductions(symmetry=False, at_once=False, remembered=False)


def twins() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="none") & add_step(saga, "b", undo="none"))
    return saga


def sent_twice() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="none", retry=TWICE))
    return saga


def undone() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="silent", undo_retry=ONCE))
    return saga


def undone_with_reply() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="reply", undo_retry=ONCE))
    return saga


def undone_at_once() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="state", undo_retry=ONCE))
    return saga


def pivot() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_pivot(saga, "p") >> add_last(saga, "z", retry=ONCE))
    return saga


def decision() -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    approval = saga.wait(
        "approval", ok=Approved, failed=Denied, timeout=None, correlate=lambda event: event.trip
    )
    saga.flow(add_step(saga, "a", undo="none") >> approval)
    return saga


def answered_by_key() -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    saga.flow(add_step(saga, "a", undo="state", undo_retry=ONCE, correlate=lambda event: 1))
    return saga


def items() -> Saga[Trip]:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="none", each=lambda state: state.items))
    return saga


SMALL: list[Callable[[], Saga[Trip]]] = [
    twins,
    sent_twice,
    undone,
    undone_with_reply,
    undone_at_once,
    pivot,
    decision,
    answered_by_key,
    items,
]


def without_operator(saga: Saga[Any], reductions: Reductions | None = None) -> Explored:
    return explore(
        saga.definition, Bounds(operator_actions=0, function_errors=0), reductions=reductions
    )


@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_the_reductions_lose_nothing(make: Callable[[], Saga[Trip]]) -> None:
    reduced, full = without_operator(make()), without_operator(make(), NOTHING_LEFT_OUT)
    assert reduced.complete_up_to is full.complete_up_to is None
    assert reduced.broken is full.broken is None
    assert reduced.worlds <= full.worlds
    assert reduced.outcomes == full.outcomes
    assert reduced.witnesses.keys() == full.witnesses.keys()
    assert reduced.waits_for_ever == full.waits_for_ever


@pytest.mark.parametrize("make", [undone, undone_with_reply, pivot], ids=lambda make: make.__name__)
def test_a_defect_is_found_with_and_without_reductions(
    make: Callable[[], Saga[Trip]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class IgnoresLateAnswers(Draft):
        def _answer_late(self, *_: Any) -> str:
            return "too late"

    monkeypatch.setattr(production, "Draft", IgnoresLateAnswers)
    for reductions in (Reductions(), NOTHING_LEFT_OUT):
        found = without_operator(make(), reductions)
        assert found.broken is not None
        assert found.broken.name in ("nothing left behind", "ends")


def test_the_saga_of_the_shop_passes() -> None:
    report = verify(fulfil.definition, Bounds(deviations=2))
    assert report.passed, "\n".join(report.lines())
    assert report.found.complete_up_to == 2
    assert {"reserve:undo", "ship", "saga completed", "saga undone"} <= {*report.wanted}
    ends = {"saga parked", "saga cancelled"}
    assert {*report.wanted, *ends} <= report.found.witnesses.keys()


def branches() -> Saga[Trip]:
    saga = new_saga()
    a, b, c, d, e, f = (add_step(saga, name) for name in "abcdef")
    saga.flow(((a >> b) & (c >> d) & (e >> f)) >> add_step(saga, "z"))
    return saga


def test_a_branch_that_is_like_another_has_stories_of_its_own() -> None:
    definition, rules = branches().definition, Rules()
    symmetric = explore(definition, Bounds(deviations=0))
    full = explore(definition, Bounds(deviations=0), reductions=Reductions(symmetry=False))
    assert symmetric.worlds < full.worlds / 3
    assert symmetric.outcomes == full.outcomes
    assert symmetric.witnesses.keys() == full.witnesses.keys()
    for name, story in symmetric.witnesses.items():
        last = scenes(symmetric.twin, rules, story)[-1].transition
        assert last is not None
        happens = {base_of(sending.label) for sending in last.sendings} | {
            f"saga {last.record.status}"
        }
        assert name in happens


def test_the_bound_of_states_is_said_with_what_was_explored_until_then() -> None:
    worlds = explore(fulfil.definition, Bounds(deviations=1)).worlds + 1
    found = explore(fulfil.definition, Bounds(worlds=worlds))
    assert (found.worlds, found.hit, found.complete_up_to) == (worlds, f"{worlds:,} states", 1)


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (
            Bounds(worlds=200),
            r"all stories with up to \d deviations, and not all with more: the bound of 200 states "
            r"was met, which --states moves",
        ),
        (Bounds(deviations=1), r"up to 1 deviations, and not all .* which --deviations moves"),
        (Bounds(worlds=2), "a part of the stories without a deviation, up to 2 states"),
    ],
    ids=["states", "deviations", "almost nothing"],
)
def test_the_report_says_what_was_not_explored(bounds: Bounds, said: str) -> None:
    report = verify(undone_with_reply().definition, bounds)
    assert re.search(said, "\n".join(report.lines()))
    assert report.to_jsonable()["complete"] is False


def test_steps_may_be_called_as_a_saga_ends() -> None:
    saga = new_saga()
    completed, parked = (add_step(saga, name, undo_retry=ONCE) for name in ("completed", "parked"))
    saga.flow(completed >> parked)
    report = verify(saga.definition, Bounds(deviations=2))
    assert report.passed
    stories = {name: report.told(story) for name, story in report.found.witnesses.items()}
    assert stories["completed"][-1] == "The saga starts: the saga sends completed"
    assert stories["saga completed"][-1].endswith("it is completed, and its end is announced")
    assert stories["parked"][-1].endswith("the saga sends parked")
    assert stories["saga parked"][-1].endswith("a function of the saga fails")


def test_two_explorations_visit_the_same() -> None:
    one, other = (explore(fulfil.definition, Bounds(deviations=1)) for _ in range(2))
    assert (one.worlds, one.transitions, one.witnesses) == (
        other.worlds,
        other.transitions,
        other.witnesses,
    )


def test_a_function_that_fails_parks_the_saga_and_a_retry_lets_it_go_on() -> None:
    found = explore(undone_with_reply().definition, Bounds(deviations=3))
    assert found.broken is None
    without = explore(undone_with_reply().definition, Bounds(deviations=3, function_errors=0))
    assert found.worlds > without.worlds
    assert ("parked", "sent") in found.outcomes - without.outcomes


def test_a_wait_without_a_time_out_is_noted_and_is_no_error() -> None:
    found = without_operator(decision())
    assert found.broken is None
    assert found.waits_for_ever == {"approval"}


def test_steps_one_after_another_that_one_event_answers_are_noted() -> None:
    saga = new_saga(key=lambda state: state.trip)

    def wait(name: str, ok: type[Event], failed: Any = ()) -> Any:
        return saga.wait(name, ok=ok, failed=failed, timeout="3d", correlate=lambda event: 1)

    manager, director = wait("manager", Approved, Denied), wait("director", Approved, Denied)
    saga.flow(manager >> add_step(saga, "score") >> director >> wait("other", Elsewhere, Denied))
    report = verify(saga.definition, Bounds(deviations=0))
    [note] = [line for line in report.lines() if "  note " in line]
    assert "Approved answers manager and then director" in note
    assert report.to_jsonable()["answered_alike"] == [
        {"steps": ["manager", "director"], "event": "Approved"}
    ]


def test_each_and_when_are_tried_both_ways() -> None:
    saga = new_saga()
    a = add_step(saga, "a", undo="none", each=lambda state: state.items)
    saga.flow(a >> add_step(saga, "b", undo="none", when=lambda state: state.wanted))
    outcomes = without_operator(saga).outcomes
    for units in (["done", "done"], ["done", "done", "done"], ["done", "done", "done", "done"]):
        assert ("completed", *units) in outcomes  # a as a whole, its items, and b
        assert ("completed", *units[1:], "skipped") in outcomes
