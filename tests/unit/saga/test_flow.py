"""`a >> b` is a, then b; `a & b` is both side by side; and Python binds the first one tighter."""

from __future__ import annotations

import pytest

from eventmesh.errors import UsageError
from eventmesh.saga.flow import Parallel, Part, Series, Step
from tests.unit.saga.trips import Story, Trip, add_pivot, add_step, new_saga


def shape(part: Part[Trip]) -> str:
    """The flow as a text with all its brackets."""
    match part:
        case Step():
            return part.name
        case Series(parts):
            return "(" + " then ".join(map(shape, parts)) + ")"
        case Parallel(parts):
            return "(" + " beside ".join(map(shape, parts)) + ")"
    raise AssertionError(part)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("a", "a"),
        ("a >> b >> c", "(a then b then c)"),
        ("a >> (b >> c)", "(a then b then c)"),
        ("(a >> b) >> (c >> d)", "(a then b then c then d)"),
        ("a & b & c", "(a beside b beside c)"),
        ("a & (b & c)", "(a beside b beside c)"),
        ("a & b >> c", "(a beside (b then c))"),
        ("a >> b & c", "((a then b) beside c)"),
        ("(a & b) >> c", "((a beside b) then c)"),
        ("a >> (b & c >> d) >> e", "(a then (b beside (c then d)) then e)"),
    ],
)
def test_a_flow_means_what_its_operators_say(written: str, meant: str) -> None:
    saga = new_saga()
    steps = {name: add_step(saga, name) for name in "abcde"}
    assert shape(eval(written, {}, steps)) == meant  # noqa: S307  # as it is written in the code


def test_the_steps_of_a_flow_are_in_the_order_in_which_it_is_written() -> None:
    saga = new_saga()
    a, b, c, d = (add_step(saga, name) for name in "abcd")
    assert [step.name for step in (a >> (c & b) >> d).steps()] == ["a", "c", "b", "d"]


def test_each_branch_goes_on_by_itself_and_what_follows_waits_for_all() -> None:
    saga = new_saga()
    a, b, c, d = (add_step(saga, name) for name in "abcd")
    saga.flow((a & b >> c) >> d)
    story = Story(saga)
    assert story.new == ["a", "b"]
    assert story.ok("b").new == ["c"]
    assert story.ok("c").new == []
    assert story.ok("a").new == ["d"]
    assert story.ok("d").status == "completed"


def test_branches_are_undone_side_by_side_and_each_from_its_end() -> None:
    saga = new_saga()
    a, b, c, d = (add_step(saga, name) for name in "abcd")
    saga.flow((a & b >> c) >> d)
    story = Story(saga).ok("a", "b", "c").failed("d")
    assert story.new == ["a:undo", "c:undo"]
    assert story.ok("a:undo").new == []
    assert story.ok("c:undo").new == ["b:undo"]
    assert story.ok("b:undo").status == "undone"


@pytest.mark.parametrize("nothing", [None, "a >> b", 7, (1, 2)])
def test_a_flow_is_made_of_steps(nothing: object) -> None:
    saga = new_saga()
    a = add_step(saga, "a")
    with pytest.raises(UsageError, match=r"not a step"):
        saga.flow(nothing)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        a >> nothing  # type: ignore[operator]
    with pytest.raises(TypeError):
        a & nothing  # type: ignore[operator]


def test_a_decorated_function_can_be_called_in_a_unit_test() -> None:
    saga = new_saga()
    assert add_step(saga, "a")(Trip()).what == "a"  # type: ignore[attr-defined]
    assert add_pivot(saga, "p")(Trip()).what == "p"  # type: ignore[attr-defined]
