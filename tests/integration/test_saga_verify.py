"""`eventmesh saga verify`, as a user or a CI job calls it."""

from __future__ import annotations

import json
import re

from tests.integration.conftest import Project
from tests.support.pages import BLOCK, ROOT

PAGE = (ROOT / "docs" / "saga-verify.md").read_text(encoding="utf-8")
[SERVICE] = (text for kind, text in BLOCK.findall(PAGE) if kind == "python")


def test_the_report_is_printed_as_json(project: Project) -> None:
    project.write("services/trips/service.py", SERVICE)
    ended = project.run("saga", "verify", "--deviations", "1", "--json")
    ended.succeeds()
    [report] = json.loads(ended.out)
    assert (report["saga"], report["passed"], report["broken"]) == ("trips.book", True, None)
    assert report["explored_deviations"] == 1
    assert report["unreached"] == []
    assert report["witnesses"]["train:undo"][-1].endswith("the saga sends the undo of train")


DEFECT = """
from eventmesh.saga import transition

class IgnoresLateAnswers(transition.Draft):
    def _answer_late(self, *_):
        return "too late"

transition.Draft = IgnoresLateAnswers
"""
"""A defect of EventMesh itself: what a service declares is right, or refused at its start."""


def test_a_failure_is_a_story_and_exit_code_1(project: Project) -> None:
    project.write("services/trips/service.py", SERVICE + DEFECT)
    ended = project.run("saga", "verify", "trips")
    assert ended.code == 1
    assert "FAILED nothing left behind: the saga is undone, and what hotel has done" in ended.out
    assert re.search(r"^    1\. The saga starts: the saga sends hotel, train$", ended.out, re.M)
    assert "sequenceDiagram" in ended.out
    assert ended.err == ""


def test_what_the_bounds_do_not_reach_is_not_passed(project: Project) -> None:
    project.write("services/trips/service.py", SERVICE)
    ended = project.run("saga", "verify", "--states", "3")
    assert ended.code == 1
    assert "never      saga completed: FAILED, no story reaches it within these bounds" in ended.out


def test_a_service_without_a_saga_is_named(project: Project) -> None:
    project.write(
        "services/trips/service.py", 'from eventmesh import Service\n\nservice = Service("trips")\n'
    )
    ended = project.run("saga", "verify", "trips")
    assert ended.code == 2
    assert "There is no saga in trips" in ended.err
