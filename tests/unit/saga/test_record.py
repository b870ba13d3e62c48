"""Labels and records come back from their texts and rows as they were, also those of older code."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import computed_field

from eventmesh import Saga
from eventmesh.persistence.sagas import SagaRow
from eventmesh.saga.happening import Answered
from eventmesh.saga.record import (
    Label,
    Parking,
    SagaRecord,
    Status,
    StepStatus,
    Stored,
    UnitRecord,
    parse_label,
)
from eventmesh.saga.storage import (
    NewerVersion,
    UnreadableState,
    parked_row,
    record_of,
    row_of,
)
from eventmesh.saga.transition import advance
from tests.unit.saga.trips import (
    Booked,
    Did,
    Failed,
    Story,
    Trip,
    Undo,
    add_step,
    as_json,
    new_saga,
    through_a_row,
)


def two_steps(version: int = 1) -> Saga[Trip]:
    saga = new_saga(version=version)
    saga.flow(add_step(saga, "reserve") >> add_step(saga, "capture"))
    return saga


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
labels = st.builds(
    Label,
    step=names,
    item=st.none() | st.integers(0, 999_999_999),
    is_undo=st.booleans(),
    attempt=st.integers(1, 999_999_999),
)


@given(labels)
def test_a_label_comes_back_from_its_text(label: Label) -> None:
    assert parse_label(str(label)) == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("reserve", Label("reserve")),
        ("pick[2]#3", Label("pick", item=2, attempt=3)),
        ("reserve:undo", Label("reserve", is_undo=True)),
        ("reserve:undo#2", Label("reserve", is_undo=True, attempt=2)),
        ("pick[0]:undo", Label("pick", item=0, is_undo=True)),
    ],
)
def test_a_label_is_written_so(text: str, label: Label) -> None:
    assert str(label) == text
    assert parse_label(text) == label


@pytest.mark.parametrize(
    "text", ["", ":undo", "a b", "a[", "a[x]", "a[-1]", "a#", "a#x", "a:undone", "a#1:undo", "a\n"]
)
def test_any_other_text_is_not_a_label(text: str) -> None:
    assert parse_label(text) is None


scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", "é"])
json_values = scalars | st.lists(scalars, max_size=2)
texts = st.sampled_from(["", "a", "pick", "b c", "ü"])
kept = st.builds(Stored, texts, st.dictionaries(texts, json_values, max_size=2))
units_named = st.sampled_from(["a", "b", "pick", "pick[0]", "pick[1]"])
statuses = st.sampled_from(StepStatus.__args__)  # type: ignore[attr-defined]
numbers = st.integers(0, 5)
deadlines = st.none() | st.floats(0, 4e9)
units = st.builds(
    UnitRecord,
    statuses,
    attempt=numbers,
    undo_attempt=numbers,
    tries=numbers,
    answer=st.none() | kept,
    answered=numbers,
    void_undos=numbers,
    deadline=deadlines,
    items=st.none() | numbers,
)
records = st.builds(
    SagaRecord,
    st.sampled_from(Status.__args__),  # type: ignore[attr-defined]
    st.builds(Trip, items=st.lists(texts).map(tuple)),
    st.dictionaries(units_named, units, max_size=3),
    failure=st.none() | st.tuples(units_named, kept),
    parking=st.none()
    | st.builds(Parking, st.sampled_from(["running", "undoing"]), texts, st.none() | units_named),
    early=st.dictionaries(units_named, kept, max_size=2),
    held=st.lists(st.dictionaries(texts, json_values), max_size=2).map(tuple),
    parent=st.none() | st.tuples(st.sampled_from(["a.b/1", "c.d/2"]), texts),
    correlation=texts,
    has_announced=st.booleans(),
).map(lambda record: replace(record, has_announced=record.has_announced or record.ended))


@given(records)
def test_a_record_comes_back_from_its_row(record: SagaRecord) -> None:
    assert through_a_row(two_steps().definition, record) == record


class CountedTrip(Trip, extra="forbid"):
    @computed_field  # type: ignore[prop-decorator]  # mypy does not know properties under it
    @property
    def number(self) -> int:
        return len(self.items)


def test_computed_fields_of_a_state_are_not_stored() -> None:
    definition = replace(two_steps().definition, state=CountedTrip)
    record = SagaRecord("running", CountedTrip(items=("a", "b")), {})
    assert through_a_row(definition, record) == record


def test_a_row_shows_people_what_the_saga_waits_for_and_until_when() -> None:
    story = Story(two_steps(), now=100.0)
    row = row_of(story.definition, story.record, saga_id="1", row_version=1, key="k")
    assert (row.waiting_for, row.key, row.reason) == ("reserve", "k", None)
    assert row.due_at is not None
    assert row.due_at.timestamp() == 130.0


# Rows of before migration 0005


def old_row(status: str, **steps: Any) -> SagaRow:
    """A row as code of before 0005 has written it."""
    return SagaRow(
        id="1",
        name="trips.base",
        version=1,
        status=status,
        state={"trip": 1},
        steps=steps,
        reason=None,
        row_version=3,
    )


RESERVED = {"status": "done", "reply_name": "parts.did", "reply": {"part": "window"}}
SENT = {"status": "sent", "reply_name": None, "reply": None}
REFUSED = {"status": "failed", "reply_name": "parts.failed", "reply": {"why": "full"}}
UNDO_SENT = {**RESERVED, "status": "undo_sent"}


def going_on(row: SagaRow) -> Story:
    """A story that goes on from a row."""
    story = Story(two_steps())
    record = record_of(story.definition, row)
    story.transition = replace(story.transition, record=record, sendings=(), ending=None)
    story.sent.clear()
    return story


def test_an_old_saga_goes_on_to_its_end() -> None:
    story = going_on(old_row("running", reserve=RESERVED, capture=SENT))
    assert story.record.waiting == ["capture"]
    assert story.ok("capture").status == "completed"
    assert len(story.endings) == 1


def test_an_old_saga_is_undone_with_the_replies_that_it_had() -> None:
    story = going_on(old_row("running", reserve=RESERVED, capture=SENT)).failed("capture")
    assert story.commands == [Undo(what="reserve", reply="window")]
    assert story.ok("reserve:undo").status == "undone"


def test_an_old_saga_that_is_being_undone_goes_on_and_says_why() -> None:
    story = going_on(old_row("undoing", reserve=UNDO_SENT, capture=REFUSED))
    assert story.record.reason == "capture: parts.failed"
    assert story.ok("reserve").rule == "a duplicate"
    assert story.ok("reserve:undo").status == "undone"
    assert [ending.how for ending in story.endings] == ["Failed"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", ["completed", "undone"])
def test_an_old_saga_that_has_ended_announces_nothing_again(status: str) -> None:
    undone = {**RESERVED, "status": "undone"}
    first = RESERVED if status == "completed" else undone
    row = old_row(status, reserve=first, capture=RESERVED if status == "completed" else REFUSED)
    story = going_on(row).ok("reserve")
    assert (story.rule, story.status, story.endings) == ("a duplicate", status, [])


def test_an_old_saga_can_be_retried_by_an_operator() -> None:
    assert going_on(old_row("running", reserve=SENT)).operator("retry").new == ["reserve#2"]


# Other versions


def migrated() -> Saga[Trip]:
    saga = two_steps(version=3)

    @saga.migrate(from_version=1)
    def count_seats(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "items": [state.pop("seat")]}

    @saga.migrate(from_version=2)
    def number(state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "trip": int(state["trip"]) + 10}

    return saga


def test_a_state_is_migrated_from_version_to_version() -> None:
    row = old_row("running", reserve=SENT)
    record = record_of(migrated().definition, replace(row, state={"trip": 1, "seat": "1a"}))
    assert record.state == Trip(trip=11, items=("1a",))
    record = record_of(migrated().definition, replace(row, version=2, state={"trip": 1}))
    assert record.state == Trip(trip=11)


def test_a_migration_leaves_the_row_as_it_was() -> None:
    row = replace(old_row("running", reserve=SENT), state={"trip": 1, "seat": "1a"})
    before = asdict(row)
    record_of(migrated().definition, row)
    assert asdict(row) == before


def test_a_newer_version_is_left_to_newer_code() -> None:
    with pytest.raises(NewerVersion, match="has version 2, and this code knows versions up to 1"):
        record_of(two_steps().definition, replace(old_row("running"), version=2))


@pytest.mark.parametrize("state", [{"trip": "none"}, {"trip": None}, {}])
def test_a_state_that_cannot_be_read_says_why(state: dict[str, Any]) -> None:
    with pytest.raises(UnreadableState, match="its state"):
        record_of(migrated().definition, replace(old_row("running"), state=state))


def test_an_unreadable_saga_is_parked_with_what_came_and_goes_on_after_the_repair() -> None:
    row = replace(old_row("running", reserve=SENT), state={"trip": "one"})
    held = {"answered": "reserve", "name": "parts.did", "data": {"part": "window"}}
    parked = parked_row(parked_row(row, "unreadable", held), "still unreadable", None)
    assert (parked.status, parked.state, parked.row_version) == ("parked", {"trip": "one"}, 5)
    story = going_on(as_json(replace(parked, state={"trip": 1})))
    assert story.operator("retry").new == ["capture"]
    assert story.failed("capture").commands == [Undo(what="reserve", reply="window")]


def test_a_record_on_its_way_is_the_same_after_each_row() -> None:
    definition = two_steps().definition
    story = Story(two_steps(), Booked(items=("x",)))
    for label, event in (("reserve", Did()), ("capture", Failed()), ("reserve", Did())):
        record = story.record
        story.tell(Answered(event, label))
        expected = advance(definition, record, Answered(event, label)).record
        assert story.record == expected
