"""What `schema check` says of a changed saga, whose older version is frozen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from eventmesh import Saga
from eventmesh.contracts.problem import Place, Problem
from eventmesh.review.report import apply_waivers, make_report
from eventmesh.review.waivers import Waiver
from eventmesh.saga import evolution
from eventmesh.saga.definition import Definition
from eventmesh.saga.evolution import check_sagas
from eventmesh.saga.happening import Answered, WaitedTooLong
from eventmesh.saga.record import SagaRecord, UnitRecord
from eventmesh.saga.shape import shape_of
from eventmesh.saga.shape_locks import freeze, retire
from eventmesh.saga.transition import advance, start
from eventmesh.saga.verify.versions import prove
from tests.unit.saga.test_shape import trip
from tests.unit.saga.trips import (
    TWICE,
    Approved,
    Booked,
    Did,
    Do,
    Elsewhere,
    Ended,
    Story,
    Trip,
    UndoForm,
    add_pivot,
    add_step,
    new_saga,
)


def wanted(state: Trip) -> bool:
    return state.wanted


def waiting(event: Any, *, version: int = 1) -> Definition:
    """A saga with a decision from outside."""
    saga = new_saga(version=version, key=lambda state: state.trip)
    decide = saga.wait("decide", ok=event, timeout="1d", correlate=lambda event: event.trip)
    saga.flow(add_step(saga, "hotel") >> decide >> add_pivot(saga, "ship"))
    return saga.definition


def found(*versions: Definition, root: Path) -> list[Problem]:
    for version in versions:
        freeze([version], root)
    return check_sagas([versions[-1]], root)


@pytest.mark.parametrize(
    "new",
    [
        trip("hotel", "car", version=2),
        trip("hotel", "car", "plane", version=2),
        trip("plane", "hotel", "car", version=2),
        trip("car", "hotel", version=2),
        trip("hotel", "car", version=2, timeout=None),
        trip("hotel", "car", version=2, when=wanted),
        trip("hotel", "car", version=2, undo="state"),
    ],
    ids=["same", "added last", "added first", "reordered", "no time-out", "when", "other undo"],
)
def test_running_sagas_go_on(new: Definition, tmp_path: Path) -> None:
    assert found(trip("hotel", "car"), new, root=tmp_path) == []


@pytest.mark.parametrize(
    ("new", "rules"),
    [
        (trip("hotel", version=2), {"EM084", "EM086"}),
        (trip("hotel", "cab", version=2), {"EM084", "EM086"}),
        (trip("hotel", "car", version=2, failed=()), {"EM085"}),
        (trip("hotel", "car", version=2, undo="silent"), {"EM085"}),
        (trip("hotel", "car", version=2, each=lambda state: state.items), {"EM085"}),
        (waiting(Approved, version=2), {"EM084", "EM086"}),
    ],
    ids=["removed", "renamed", "failed", "undo answer", "each", "other flow"],
)
def test_what_would_strand_a_saga_is_found(
    new: Definition, rules: set[str], tmp_path: Path
) -> None:
    problems = found(trip("hotel", "car"), new, root=tmp_path)
    assert {problem.rule for problem in problems} == rules
    assert all(problem.severity == "error" for problem in problems)


def test_a_finding_says_where_how_many_and_what_to_do(tmp_path: Path) -> None:
    [removed, _] = found(trip("hotel", "car"), trip("hotel", version=2), root=tmp_path)
    assert removed.subject == "trips.base v2"
    assert removed.summary == (
        "the step car: it was removed, but a saga may wait in it; that is so in 28 kinds of states "
        "of sagas of version 1, such as running: hotel done, car sent"
    )
    assert "Keep the step car under its name; with when=lambda state: False" in removed.fix
    assert "`eventmesh schema retire trips.base 1`" in removed.fix


def test_a_step_that_is_kept_but_skipped_strands_nobody(tmp_path: Path) -> None:
    saga = new_saga(version=2)
    car = add_step(saga, "car", when=lambda state: False)
    saga.flow(add_step(saga, "hotel") >> car >> add_pivot(saga, "ship"))
    assert found(trip("hotel", "car"), saga.definition, root=tmp_path) == []


def test_a_retired_version_is_not_looked_at(tmp_path: Path) -> None:
    assert found(trip("hotel", "car"), trip("hotel", version=2), root=tmp_path) != []
    retire(tmp_path, "trips.base", 1)
    assert check_sagas([trip("hotel", version=2)], tmp_path) == []


def test_an_event_that_may_have_come_early_must_still_be_taken(tmp_path: Path) -> None:
    problems = found(waiting(Approved), waiting(Elsewhere, version=2), root=tmp_path)
    assert {problem.rule for problem in problems} == {"EM085"}
    assert any("which has come early" in problem.summary for problem in problems)


def test_sagas_of_all_older_versions_go_on(tmp_path: Path) -> None:
    one, two = trip("hotel"), trip("hotel", "car", version=2)
    assert found(one, two, trip("hotel", "car", "plane", version=3), root=tmp_path) == []
    problems = check_sagas([trip("car", version=3)], tmp_path)
    assert {"EM084", "EM086"} <= {problem.rule for problem in problems}
    assert any("versions 1 and 2" in problem.summary for problem in problems)


def test_a_bound_that_is_met_is_said() -> None:
    old, new = trip("hotel", "car"), trip("hotel", version=2)
    findings = prove([shape_of(old)], shape_of(new), most_records=20).findings
    assert findings[-1].rule == "EM089"
    assert findings[-1].what == "more than 20 kinds of states were met"
    assert findings[0].rule == "EM084"  # what was met is looked at


def test_what_could_not_be_decided_is_an_error_unless_it_is_waived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evolution, "prove", partial(prove, most_records=20))
    [problem] = found(trip("hotel", "car"), trip("hotel", "car", "plane", version=2), root=tmp_path)
    assert (problem.rule, problem.severity) == ("EM089", "error")
    assert "waive this finding with a reason" in problem.fix
    waiver = Waiver(
        problem.fingerprint, "tested by hand", date(2030, 1, 1), Place("pyproject.toml")
    )
    assert not make_report(apply_waivers([problem], [waiver], date(2029, 1, 1)), ()).failures


# The state


class One(BaseModel):
    trip: int
    seats: int


class Two(BaseModel):
    trip: int
    places: int


class Three(BaseModel):
    trip: int
    seats: int
    note: str = ""


def stating(
    state: type[BaseModel], version: int, migrate: Callable[[Any], Any] | None = None
) -> Definition:
    saga: Saga[Any] = Saga("trips.base", state, version=version)

    def begin(event: Booked) -> Any: ...

    def go(current: Any) -> Do: ...

    begin.__annotations__["return"] = state
    go.__annotations__["current"] = state
    saga.starts(begin)
    saga.flow(saga.step(ok=Did, timeout="1m", no_undo="it only reads")(go))
    if migrate is not None:
        saga.migrate(from_version=1)(migrate)
    return saga.definition


def test_a_state_that_cannot_be_read_needs_a_migration(tmp_path: Path) -> None:
    [problem] = found(stating(One, 1), stating(Two, 2), root=tmp_path)
    assert problem.rule == "EM087"
    assert "which version 2 cannot read (places: Field required" in problem.summary
    assert problem.fix.startswith("Write @….migrate(from_version=1)")


def test_an_optional_field_needs_none(tmp_path: Path) -> None:
    assert found(stating(One, 1), stating(Three, 2), root=tmp_path) == []


def test_a_migration_is_run_on_states_of_the_old_version(tmp_path: Path) -> None:
    def renamed(state: dict[str, Any]) -> dict[str, Any]:
        return {"trip": state["trip"], "places": state["seats"]}

    assert found(stating(One, 1), stating(Two, 2, renamed), root=tmp_path) == []

    def wrong(state: dict[str, Any]) -> dict[str, Any]:
        return {"trip": state["trip"], "places": 10 // state["seats"]}

    [problem] = check_sagas([stating(Two, 2, wrong)], tmp_path)
    assert problem.rule == "EM087"
    assert "cannot migrate (ZeroDivisionError" in problem.summary


# What the transition does where a version has changed


def test_a_time_out_that_the_code_does_not_have_any_more_fails_its_step() -> None:
    old, new = trip("hotel"), trip("hotel", version=2, timeout=None)
    record = start(old, Booked()).record
    assert record.units["hotel"].deadline is not None
    after = advance(new, record, WaitedTooLong("hotel"))
    assert after.record.status == "undone"
    assert after.record.reason == "hotel: no answer in time"


def undone_by(undo: UndoForm, *, version: int = 1) -> Saga[Trip]:
    saga = new_saga(version=version)
    saga.flow(add_step(saga, "hotel", undo=undo, undo_retry=TWICE))
    return saga


@pytest.mark.parametrize("happened", ["timed_out", "dead_lettered"])
def test_an_undo_that_takes_the_reply_now_waits_for_it(happened: str) -> None:
    """Older code has sent it after a time-out, when nobody had answered."""
    story = Story(undone_by("state")).timed_out("hotel").deployed(undone_by("reply", version=2))
    getattr(story, happened)("hotel:undo")
    assert story.rule == "to be undone when answered"
    assert (story.status, story.new) == ("undone", [])
    assert story.ok("hotel").new == ["hotel:undo#2"]
    assert story.ok("hotel:undo#2").status == "undone"
    assert len(story.endings) == 1


def test_an_undo_without_ok_that_takes_the_reply_now_waits_for_it() -> None:
    story = Story(undone_by("silent")).timed_out("hotel")
    story.deployed(undone_by("silent with reply", version=2)).dead_lettered("hotel:undo")
    assert (story.rule, story.status) == ("to be undone when answered", "undone")
    assert story.ok("hotel").new == ["hotel:undo#2"]


def test_an_undo_that_takes_the_reply_now_and_is_confirmed_is_done() -> None:
    story = Story(undone_by("state")).timed_out("hotel").deployed(undone_by("reply", version=2))
    assert story.ok("hotel:undo").status == "undone"
    assert story.unit("hotel").status == "undone"


def test_a_saga_that_is_parked_for_such_an_undo_goes_on_by_a_retry() -> None:
    story = Story(undone_by("state")).timed_out("hotel")
    story.timed_out("hotel:undo").timed_out("hotel:undo#2")
    assert story.status == "parked"
    assert story.deployed(undone_by("reply", version=2)).operator("retry").status == "undone"


def test_an_undo_that_takes_the_reply_now_strands_nobody(tmp_path: Path) -> None:
    newer = undone_by("reply", version=2).definition
    assert found(undone_by("state").definition, newer, root=tmp_path) == []


def test_a_step_added_before_the_pivot_is_skipped_once_the_pivot_has_begun() -> None:
    new = trip("hotel", "car", version=2)
    record = SagaRecord(
        "running", Trip(), {"hotel": UnitRecord("done"), "ship": UnitRecord("sent")}
    )
    after = advance(new, record, Answered(Did(), "ship"))
    assert after.record.units["car"].status == "skipped"
    assert after.record.status == "completed"
    assert after.ending == Ended(how="completed")


def test_a_step_added_before_the_pivot_runs_while_the_pivot_has_not_begun() -> None:
    new = trip("hotel", "car", version=2)
    record = SagaRecord("running", Trip(), {"hotel": UnitRecord("sent")})
    after = advance(new, record, Answered(Did(), "hotel"))
    assert after.record.waiting == ["car"]
