"""Freezing the shape of a saga, and telling what has changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eventmesh import Saga
from eventmesh.errors import Drift
from eventmesh.saga.definition import Definition
from eventmesh.saga.shape import as_json, differences, from_json, shape_of, text
from eventmesh.saga.shape_locks import check_shape, folder_of, freeze, read_shapes, refuse_drift
from tests.unit.saga.trips import Trip, add_pivot, add_step, new_saga

NAME = "trips.base"


def trip(*names: str, version: int = 1, **options: Any) -> Definition:
    """A saga of these steps, one after another, and a pivot."""
    saga: Saga[Trip] = new_saga(version=version)
    steps = [add_step(saga, name, **options) for name in names]
    flow: Any = steps[0]
    for step in steps[1:]:
        flow = flow >> step
    saga.flow(flow >> add_pivot(saga, "ship"))
    return saga.definition


def rules(definition: Definition, root: Path) -> list[str]:
    found = check_shape(definition, read_shapes(root, definition.name), root)
    return [problem.rule for problem in found]


def test_a_shape_survives_being_written_as_json() -> None:
    shape = shape_of(trip("hotel", "car", retry=None))
    assert from_json(json.loads(json.dumps(as_json(shape)))) == shape


def test_a_flow_is_written_as_in_the_code() -> None:
    saga = new_saga()
    a, b, c, d = (add_step(saga, name) for name in "abcd")
    saga.flow((a & b >> c) >> d)
    assert text(shape_of(saga.definition).flow) == "(a & b >> c) >> d"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (trip("hotel"), "the step car was removed"),
        (trip("hotel", "car", "plane"), "the step plane was added"),
        (
            trip("car", "hotel"),
            "the flow changed from hotel >> car >> ship to car >> hotel >> ship",
        ),
        (trip("hotel", "car", failed=()), "the step hotel does not take parts.failed any more"),
        (trip("hotel", "car", undo="none"), "the step car has no undo any more"),
        (trip("hotel", "car", timeout=None), "the step car does not time out any more"),
        (trip("hotel", "car", when=lambda state: state.wanted), "the step car has when= now"),
    ],
)
def test_differences_are_told_in_words(change: Definition, said: str) -> None:
    assert said in differences(shape_of(trip("hotel", "car")), shape_of(change))


def test_a_renamed_step_is_told_from_a_removed_one() -> None:
    said = differences(shape_of(trip("hotel")), shape_of(trip("room")))
    assert said[0] == "the step hotel was renamed to room, which makes it another step"
    assert "the step room was added" not in said


def test_a_frozen_version_may_not_change(tmp_path: Path) -> None:
    assert rules(trip("hotel"), tmp_path) == ["EM081"]
    refuse_drift(trip("hotel"), tmp_path)  # not frozen yet
    [lock] = freeze([trip("hotel")], tmp_path)
    assert lock.path == tmp_path / "trips" / "base-saga" / "v1.json"
    assert rules(trip("hotel"), tmp_path) == []
    assert rules(trip("hotel", timeout="2m"), tmp_path) == []  # a duration is not its shape
    assert rules(trip("hotel", "car"), tmp_path) == ["EM080"]
    with pytest.raises(Drift, match="the step car was added"):
        refuse_drift(trip("hotel", "car"), tmp_path)
    with pytest.raises(Drift, match=r"count up to Saga\(…, version=2\)"):
        freeze([trip("hotel", "car")], tmp_path)
    freeze([trip("hotel", "car", version=2)], tmp_path)
    assert rules(trip("hotel", "car", version=2), tmp_path) == []


def test_freezing_twice_writes_the_same(tmp_path: Path) -> None:
    [one] = freeze([trip("hotel")], tmp_path / "one")
    [other] = freeze([trip("hotel")], tmp_path / "other")
    assert one.path.read_bytes() == other.path.read_bytes()
    assert freeze([trip("hotel")], tmp_path / "one") == []


def test_versions_count_up_by_one(tmp_path: Path) -> None:
    freeze([trip("hotel", version=2)], tmp_path)
    assert rules(trip("hotel"), tmp_path) == ["EM083"]
    assert rules(trip("hotel", version=4), tmp_path) == ["EM083"]
    assert rules(trip("hotel", version=3), tmp_path) == ["EM081"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"hotel"', '"room"'),
        lambda text: text.replace('"hash"', '"hush"'),
        lambda text: "[]",
        lambda text: text[:-20],
        lambda text: text.replace('"active"', '"asleep"'),
    ],
)
def test_an_edited_lock_file_is_reported(tmp_path: Path, damage: Any) -> None:
    [lock] = freeze([trip("hotel")], tmp_path)
    lock.path.write_text(damage(lock.path.read_text()))
    assert rules(trip("hotel"), tmp_path) == ["EM082"]
    with pytest.raises(Drift, match="Restore the lock file"):
        refuse_drift(trip("hotel"), tmp_path)


def test_no_message_can_have_the_folder_of_a_saga() -> None:
    assert folder_of(Path("schemas"), NAME).name == "base-saga"
