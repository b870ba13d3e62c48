from __future__ import annotations

import importlib.util
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventmesh import Event
from eventmesh.contracts.locks.drift import check
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.problem import Problem
from eventmesh.review.locations import locate
from eventmesh.review.repair import Project, Repairs, repair

Load = Callable[[str], type[Event]]

SOLD = """\
from typing import Literal
from eventmesh import Event

class Sold(Event, name="shop.sold", version=1):
    id: str
    paid: Literal["card", "cash"] = "card"
"""


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Writes a text to contracts.py, and returns its class `Sold`."""
    loaded = []

    def write_and_load(text: str) -> type[Event]:
        path = tmp_path / "contracts.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location(f"contracts_{uuid.uuid4().hex}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        loaded.append(spec.name)
        exec(compile(text, str(path), "exec"), vars(module))  # noqa: S102  # not from the cache
        model: type[Event] = module.Sold
        return model

    yield write_and_load
    for name in loaded:
        del sys.modules[name]


def problems(folder: Path, model: type[Event]) -> list[Problem]:
    return check([model], read_locks(folder / "schemas"))


def fix(folder: Path, model: type[Event], found: list[Problem] | None = None) -> Repairs:
    project = Project(folder, folder / "schemas", [model])
    return repair(problems(folder, model) if found is None else found, project)


def test_an_added_enum_value_is_repaired_with_a_new_version_and_without_todo(
    tmp_path: Path, load: Load
) -> None:
    freeze([load(SOLD)], tmp_path / "schemas")
    repairs = fix(tmp_path, load(SOLD.replace('"cash"]', '"cash", "coin"]')))
    assert repairs.left == ()
    written = (tmp_path / "contracts.py").read_text()
    assert "    return data\n" in written
    assert "TODO" not in written
    test = (tmp_path / "tests/schemas/test_shop_sold_v1.py").read_text()
    assert '"coin"' in test  # the witness, a document of the new version
    assert '"card"' in test or '"cash"' in test  # and a document of the old one
    upcast = load(written).__upcasters__[1]
    assert upcast({"id": "1", "paid": "card"}) == {"id": "1", "paid": "card"}


def test_repairing_twice_changes_nothing_more(tmp_path: Path, load: Load) -> None:
    freeze([load(SOLD)], tmp_path / "schemas")
    model = load(SOLD.replace("    id: str", "    id: int"))
    found = problems(tmp_path, model)
    fix(tmp_path, model, found)
    written = (tmp_path / "contracts.py").read_text()
    fix(tmp_path, load(written), found)
    assert (tmp_path / "contracts.py").read_text() == written


def test_a_model_outside_the_files_of_the_project_is_left_to_its_author(
    tmp_path: Path, load: Load
) -> None:
    freeze([load(SOLD)], tmp_path / "schemas")

    class Sold(Event, name="shop.sold", version=1):
        id: int

    repairs = fix(tmp_path, Sold)
    assert repairs.done == ()
    [left] = repairs.left
    assert "by hand" in left
    assert not (tmp_path / "tests").exists()


def test_a_change_to_an_old_version_is_left_to_its_author(tmp_path: Path, load: Load) -> None:
    for version in (1, 2, 3):
        freeze([load(SOLD.replace("version=1", f"version={version}"))], tmp_path / "schemas")
    repairs = fix(tmp_path, load(SOLD.replace("id: str", "id: int")))
    [left] = repairs.left
    assert "Version 3 is frozen already" in left


def test_a_version_is_not_frozen_while_its_message_has_another_problem(
    tmp_path: Path, load: Load
) -> None:
    model = load(SOLD)
    [missing] = problems(tmp_path, model)
    work = Problem("EM037", "error", "shop.sold v1", "the upcaster fails", "correct it")
    repairs = fix(tmp_path, model, [missing, work])
    assert repairs.solved == set()
    assert not (tmp_path / "schemas").exists()
    other = Problem("EM037", "error", "shop.sold_out v1", "the upcaster fails", "correct it")
    assert fix(tmp_path, model, [missing, other]).solved == {missing.fingerprint}
    assert (tmp_path / "schemas/shop/sold/v1.json").exists()


def test_an_unwritable_folder_is_reported_and_the_model_stays_unchanged(
    tmp_path: Path, load: Load
) -> None:
    freeze([load(SOLD)], tmp_path / "schemas")
    (tmp_path / "tests").write_text("a file where the folder should be")
    repairs = fix(tmp_path, load(SOLD.replace("id: str", "id: int")))
    assert "cannot be written" in repairs.left[0]
    assert "version=1" in (tmp_path / "contracts.py").read_text()


# Locations of findings


def test_a_problem_of_a_model_is_located_at_its_class(tmp_path: Path, load: Load) -> None:
    model = load(SOLD)
    [problem] = locate(problems(tmp_path, model), [model], tmp_path)
    assert problem.place is not None
    assert (problem.place.file, problem.place.line) == ("contracts.py", 4)


def test_a_problem_of_a_lock_file_is_located_in_that_file(tmp_path: Path, load: Load) -> None:
    model: Any = load(SOLD)
    freeze([model], tmp_path / "schemas")
    (tmp_path / "schemas/shop/sold/v1.json").write_text("{")
    [problem, *_] = locate(problems(tmp_path, model), [model], tmp_path)
    assert problem.place is not None
    assert problem.place.file == "schemas/shop/sold/v1.json"
