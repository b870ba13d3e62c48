# ruff: noqa: N805  # the functions of a saga take its state instead of self
# No `from __future__ import annotations`: sagas are defined inside tests, whose local names a
# postponed annotation could not resolve.
"""A saga is checked when its class is defined, and each mistake is named."""

import functools
import operator
import types
from typing import Any

import pytest
from pydantic import BaseModel

from eventmesh.contracts.message import Command, Event
from eventmesh.errors import UsageError
from eventmesh.saga.authoring import Saga, pivot, step
from eventmesh.saga.definition import Definition, Flow, Step


class State(BaseModel):
    number: int = 0


class Started(Event, name="a.started", version=1):
    pass


class Do(Command, name="b.do", version=1):
    pass


class Undo(Command, name="b.undo", version=1):
    pass


class Did(Event, name="b.did", version=1):
    pass


class Refused(Event, name="b.refused", version=1):
    pass


class Undid(Event, name="b.undid", version=1):
    pass


class Ended(Event, name="a.ended", version=1):
    pass


class Nameless(Event):
    pass


def begin(event: Started) -> State:
    return State()


def do(state: State) -> Do:
    return Do()


def take_back(state: State, reply: Did) -> Undo:
    return Undo()


AS_WRITTEN = Flow(())


def define(
    flow: object = AS_WRITTEN, begin: object = begin, completed: object = None, **steps: Step
) -> Definition:
    """The definition of a saga with these steps, one after another unless `flow` is given."""
    if flow is AS_WRITTEN:
        flow = functools.reduce(operator.rshift, steps.values())
    body = {"begin": begin, **steps, "flow": flow, "completed": completed}

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = __name__
        namespace.update({name: value for name, value in body.items() if value is not None})

    keywords = {"name": "a.written", "started_by": Started}
    return types.new_class("Written", (Saga[State],), keywords, fill).definition


def plain() -> Step:
    return step(ok=Did)(do)


def failing() -> Step:
    return step(ok=Did, failed=Refused)(do)


class Written(Saga[State], name="a.written", version=3, started_by=Started):
    def begin(event: Started) -> State:
        return State()

    @step(ok=Did, failed=[Refused, Ended])
    def first(state: State) -> Do:
        return Do()

    @first.undo(ok=Undid)
    def take_first_back(state: State, reply: Did) -> Undo:
        return Undo()

    @pivot(ok=Did)
    def second(state: State) -> Do:
        return Do()

    @step(ok=Did)
    def third(state: State) -> Do:
        return Do()

    flow = first >> second >> third

    def completed(state: State) -> Ended | None:
        return Ended()


def test_a_saga_is_known_by_its_class_keywords() -> None:
    definition = Written.definition
    assert (definition.name, definition.version, definition.started_by, definition.state) == (
        "a.written",
        3,
        Started,
        State,
    )


def test_steps_are_known_by_the_names_they_have_in_the_class() -> None:
    assert [each.name for each in Written.definition.steps] == ["first", "second", "third"]
    assert [each.is_pivot for each in Written.definition.steps] == [False, True, False]


def test_a_saga_publishes_its_commands_and_its_ends() -> None:
    assert Written.definition.publishes == (Do, Undo, Ended)


def test_a_saga_takes_the_replies_to_its_steps_and_undos() -> None:
    assert set(Written.definition.replies()) == {Did, Refused, Ended, Undid}


def test_an_end_that_is_not_written_publishes_nothing() -> None:
    assert Written.definition.undone(State(), Refused()) is None


def test_the_version_is_1_by_default() -> None:
    assert define(a=plain(), b=plain()).version == 1


@pytest.mark.parametrize("flow", [None, "a >> b", (1, 2)])
def test_a_saga_without_flow_is_refused(flow: object) -> None:
    with pytest.raises(UsageError, match=rf"{__name__}.Written has no flow: write flow = first >>"):
        define(flow, a=plain())


def test_a_saga_without_begin_is_refused() -> None:
    with pytest.raises(UsageError, match="has no begin: write @staticmethod def begin"):
        define(begin=None, a=plain(), b=plain())


def test_a_step_that_the_flow_leaves_out_is_named() -> None:
    a, b = plain(), plain()
    with pytest.raises(UsageError, match="leaves c, d out of its flow"):
        define(a >> b, a=a, b=b, c=plain(), d=plain())


def test_a_step_twice_in_the_flow_is_refused() -> None:
    a, b = plain(), plain()
    with pytest.raises(UsageError, match="has a step twice in its flow"):
        define(a >> b >> a, a=a, b=b)


def test_a_step_after_the_pivot_cannot_fail() -> None:
    with pytest.raises(UsageError, match="has the step b after its pivot, where the saga"):
        define(a=pivot(ok=Did)(do), b=failing())


def test_a_step_after_the_pivot_cannot_be_undone() -> None:
    undoable = plain()
    undoable.undo(take_back)
    with pytest.raises(UsageError, match="has the step b after its pivot"):
        define(a=pivot(ok=Did)(do), b=undoable)


def test_a_pivot_itself_may_fail() -> None:
    definition = define(a=failing(), b=pivot(ok=Did, failed=Refused)(do))
    assert Refused in list(definition.replies())


def test_a_saga_has_at_most_one_pivot() -> None:
    with pytest.raises(UsageError, match="has 2 pivots: a saga has at most one point of no return"):
        define(a=pivot(ok=Did)(do), b=pivot(ok=Did)(do))


def test_a_step_has_one_undo() -> None:
    undoable = plain()
    undoable.undo(ok=Undid)(take_back)
    with pytest.raises(UsageError, match="The step do has two undos"):
        undoable.undo(take_back)


def unannotated(state: State, reply: Any = None):  # type: ignore[no-untyped-def]
    return Do()


def makes_an_event(state: State) -> Did:
    return Did()


@pytest.mark.parametrize("function", [unannotated, makes_an_event])
def test_a_step_says_which_command_it_sends(function: Any) -> None:
    with pytest.raises(UsageError, match=f"{function.__name__} must say which command it sends"):
        define(a=step(ok=Did)(function), b=plain())


def test_an_undo_says_which_command_it_sends() -> None:
    undoable = plain()
    undoable.undo(unannotated)
    with pytest.raises(UsageError, match="unannotated must say which command it sends"):
        define(a=undoable, b=plain())


@pytest.mark.parametrize("replies", [{"ok": Nameless}, {"ok": Did, "failed": [Refused, Nameless]}])
def test_a_reply_has_a_name(replies: Any) -> None:
    with pytest.raises(UsageError, match="Nameless has no name"):
        define(a=step(**replies)(do), b=plain())


def test_a_saga_says_what_its_state_is() -> None:
    with pytest.raises(UsageError, match=r"name the type of its state: .*Saga\[SomeModel\]"):

        class Stateless(Saga, name="a.stateless", started_by=Started):
            def begin(event: Started) -> State:
                return State()

            a = step(ok=Did)(do)
            b = step(ok=Did)(do)
            flow = a >> b


def test_chained_steps_form_consecutive_stages() -> None:
    a, b, c = plain(), plain(), plain()
    assert (a >> b >> c) == Flow(((a,), (b,), (c,)))


def test_a_flow_may_be_a_single_step() -> None:
    only = plain()
    assert list(define(only, a=only).steps) == [only]


def test_the_step_of_a_flow_of_one_keeps_its_name() -> None:
    class Short(Saga[State], name="a.short", started_by=Started):
        def begin(event: Started) -> State:
            return State()

        @step(ok=Did)
        def only(state: State) -> Do:
            return Do()

        flow = only

    assert [each.name for each in Short.definition.steps] == ["only"]


def test_a_flow_may_be_made_of_flows() -> None:
    a, b, c, d = plain(), plain(), plain(), plain()
    assert (a >> (b >> c)) == (a >> b >> c)
    assert ((a >> b) >> (c >> d)) == (a >> b >> c >> d)


def test_a_pivot_cannot_be_undone() -> None:
    undoable = pivot(ok=Did)(do)
    undoable.undo(take_back)
    with pytest.raises(UsageError, match="has an undo for its pivot a, which cannot be undone"):
        define(undoable, a=undoable)


def test_the_starting_event_cannot_answer_a_step() -> None:
    undoable = plain()
    undoable.undo(ok=Started)(take_back)
    answered = (step(ok=Started)(do), step(ok=Did, failed=[Refused, Started])(do), undoable)
    for each in answered:
        with pytest.raises(
            UsageError, match="is started by Started, which also answers its step b"
        ):
            define(a=plain(), b=each)


def end_without_annotation(state: State):  # type: ignore[no-untyped-def]
    return Ended()


def test_begin_and_the_ends_may_be_static_methods() -> None:
    class Static(Saga[State], name="a.static", started_by=Started):
        @staticmethod
        def begin(event: Started) -> State:
            return State(number=7)

        only = step(ok=Did)(do)
        flow = only

        @staticmethod
        def completed(state: State) -> Ended:
            return Ended()

    assert Static.definition.begin(Started()) == State(number=7)
    assert Static.definition.completed(State()) == Ended()
    assert Static.definition.publishes == (Do, Ended)


def test_an_end_says_which_message_it_returns() -> None:
    with pytest.raises(
        UsageError, match="end_without_annotation must say which message it returns, or None"
    ):
        define(a=plain(), b=plain(), completed=end_without_annotation)
