# No `from __future__ import annotations`: sagas are declared inside tests, whose local names a
# postponed annotation could not resolve.
"""A saga is checked when its service includes it, and each mistake is named."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr, field_serializer

from eventmesh import Command, DeadLettered, Event, Saga, SagaFailure, Service, TimedOut
from eventmesh.contracts.secret_fields import secret_fields
from eventmesh.errors import UsageError
from eventmesh.saga.definition import Definition
from tests.unit.saga.trips import (
    Approved,
    Booked,
    Denied,
    Did,
    Do,
    Ended,
    Failed,
    Trip,
    Undid,
    Undo,
    add_last,
    add_pivot,
    add_step,
    add_undo,
    new_saga,
)


class Nameless(Event):
    pass


class OtherState(BaseModel):
    pass


class OtherStart(Event, name="trips.rebooked", version=1):
    pass


class StartingCommand(Command, name="trips.book", version=1):
    pass


def take_back(state: Trip, reply: Did) -> Undo:
    return Undo(what="")


def of_one_step(step_of: Callable[[Saga[Trip]], Any], **options: Any) -> Definition:
    saga = new_saga(**options)
    saga.flow(step_of(saga))
    return saga.definition


def refused(saga: Saga[Trip], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        saga.definition  # noqa: B018  # it is checked when it is first read


class Card(BaseModel):
    number: SecretStr


class SecretState(BaseModel):
    cards: tuple[Card, ...] = ()


class StateInParts(BaseModel):
    hidden: int = Field(default=0, exclude=True)


class WrittenSecret(BaseModel):
    number: SecretStr

    @field_serializer("number", when_used="json")
    def write(self, number: SecretStr) -> str:
        return number.get_secret_value()


# What a saga is


def test_a_saga_is_known_by_its_name_its_version_and_its_state() -> None:
    definition = of_one_step(lambda saga: add_step(saga, "a"), version=3)
    assert (definition.name, definition.version, definition.state) == ("trips.base", 3, Trip)


def test_the_version_is_1_by_default() -> None:
    assert of_one_step(lambda saga: add_step(saga, "a")).version == 1


def test_steps_have_the_names_of_their_functions() -> None:
    saga = new_saga()
    a, b, c = add_step(saga, "a"), add_pivot(saga, "b"), add_last(saga, "c")
    saga.flow(a >> b >> c)
    assert list(saga.definition.steps) == ["a", "b", "c"]
    assert [step.is_pivot for step in saga.definition.steps.values()] == [False, True, False]
    assert saga.definition.after_pivot == {"c"}


def test_a_saga_publishes_its_commands_and_its_ends() -> None:
    assert of_one_step(lambda saga: add_step(saga, "a")).publishes == (Do, Undo, Ended)


def test_a_saga_takes_the_answers_to_its_steps_and_undos() -> None:
    definition = of_one_step(lambda saga: add_step(saga, "a", failed=[Failed, Denied]))
    assert set(definition.replies()) == {Did, Failed, Denied, Undid}


def test_an_end_that_is_not_written_publishes_nothing() -> None:
    saga = Saga("trips.silent", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return Trip()

    saga.flow(add_step(saga, "a"))
    assert saga.definition.undone(Trip(), Failed()) is None
    assert saga.definition.completed(Trip()) is None


def test_several_messages_may_start_a_saga() -> None:
    saga = Saga("trips.open", Trip)

    @saga.starts
    def begin(event: Booked | OtherStart) -> Trip:
        return Trip()

    @saga.starts
    def on_command(command: StartingCommand) -> Trip:
        return Trip(trip=2)

    saga.flow(add_step(saga, "a"))
    assert set(saga.definition.starts) == {Booked, OtherStart, StartingCommand}


def test_a_service_includes_a_saga() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a"))
    service = Service("trips")
    service.include(saga)
    assert list(service.sagas) == ["trips.base"]
    assert "trips.base.saga" in service.handlers


def test_a_saga_belongs_to_the_service_that_its_name_begins_with() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a"))
    with pytest.raises(UsageError, match="does not belong to service 'tripsters'"):
        Service("tripsters").include(saga)


def test_a_mistake_is_found_when_the_service_includes_the_saga() -> None:
    with pytest.raises(UsageError, match="has no flow"):
        Service("trips").include(new_saga())


# The saga as a whole


@pytest.mark.parametrize("name", ["", "base", "Trips.base", "trips.", "trips base", "trips.b-a"])
def test_a_name_that_cannot_be_used_is_refused(name: str) -> None:
    saga = new_saga(name)
    saga.flow(add_step(saga, "a"))
    refused(saga, r"name .* cannot be used: write the service's name, a dot and")


def test_versions_are_counted_from_1() -> None:
    saga = new_saga(version=0)
    saga.flow(add_step(saga, "a"))
    refused(saga, "has version=0: count up from 1")


def begin_again(event: OtherStart) -> Trip:
    return Trip()


LATE_PARTS: dict[str, Callable[[Saga[Trip]], object]] = {
    "a start": lambda saga: saga.starts(begin_again),
    "a step": lambda saga: add_step(saga, "late"),
    "a wait": lambda saga: saga.wait(
        "late", ok=Approved, timeout=None, correlate=lambda event: event.trip
    ),
    "a migration": lambda saga: saga.migrate(from_version=1)(lambda state: state),
    "the completion": lambda saga: saga.completed(lambda _: None),
    "the undoing": lambda saga: saga.undone(lambda _, __: None),
}


@pytest.mark.parametrize("part", LATE_PARTS)
def test_a_part_that_is_declared_after_the_saga_was_included_is_refused(part: str) -> None:
    saga = new_saga(version=2)
    saga.flow(add_step(saga, "a"))
    Service("trips").include(saga)
    with pytest.raises(UsageError, match=r"service\.include before .* was declared: call "):
        LATE_PARTS[part](saga)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (SecretState, r"the secret field cards\.number in its state"),
        (StateInParts, "the field hidden with exclude=True in its state"),
    ],
)
def test_a_state_that_is_not_stored_whole_is_refused(state: type[BaseModel], match: str) -> None:
    saga = Saga("trips.base", state)

    def begin(event: Booked) -> Any: ...

    begin.__annotations__["return"] = state
    saga.starts(begin)

    @saga.step(ok=Did, timeout="1m", no_undo="a test")
    def a(state: Any) -> Do:
        return Do(what="a")

    saga.flow(a)
    refused(saga, match)


def test_a_secret_whose_serializer_writes_it_may_be_in_a_state() -> None:
    assert secret_fields(WrittenSecret) == []


def test_a_saga_without_a_start_is_refused() -> None:
    saga = Saga("trips.base", Trip)
    saga.flow(add_step(saga, "a"))
    refused(saga, "is never started: decorate a function that takes the starting event")


def test_a_saga_without_a_flow_is_refused() -> None:
    refused(new_saga(), r"has no flow: write ….flow\(first >> second >> third\)")


def test_a_saga_has_one_flow() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a"))
    with pytest.raises(UsageError, match="has two flows: remove one"):
        saga.flow(add_step(saga, "b"))


def test_a_saga_has_one_function_for_each_end() -> None:
    saga = new_saga()

    def completed(state: Trip) -> Ended:
        return Ended(how="")

    def undone(state: Trip, failure: object) -> Ended:
        return Ended(how="")

    with pytest.raises(UsageError, match="has two functions for its completion"):
        saga.completed(completed)
    with pytest.raises(UsageError, match="has two functions for its undoing"):
        saga.undone(undone)


def test_a_message_starts_a_saga_in_one_way() -> None:
    with pytest.raises(UsageError, match="has two functions that Booked starts"):

        @new_saga().starts
        def again(event: Booked) -> Trip:
            return Trip()


def test_a_starting_function_says_which_message_it_takes() -> None:
    with pytest.raises(UsageError, match=r"begin must say which message starts it"):

        @Saga("trips.base", Trip).starts
        def begin(event) -> Trip:  # type: ignore[no-untyped-def]
            return Trip()


def test_a_starting_function_returns_the_state() -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> OtherState:
        return OtherState()

    saga.flow(add_step(saga, "a"))
    refused(saga, "begin returns OtherState, but it must return the saga's state, Trip")


# The flow


def test_a_step_that_the_flow_leaves_out_is_named() -> None:
    saga = new_saga()
    a, b, _, _ = (add_step(saga, name) for name in "abcd")
    saga.flow(a >> b)
    refused(saga, "leaves c, d out of its flow")


def test_a_step_twice_in_the_flow_is_refused() -> None:
    saga = new_saga()
    a, b = add_step(saga, "a"), add_step(saga, "b")
    saga.flow(a >> b >> a)
    refused(saga, "has the step a twice in its flow: a flow never comes back to a step")


def test_two_steps_of_one_name_are_refused() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") >> add_step(saga, "a"))
    refused(saga, "has two steps of the name a: rename one")


def test_a_step_of_another_saga_is_refused() -> None:
    saga, other = new_saga(), new_saga("trips.other")
    saga.flow(add_step(saga, "a") >> add_step(other, "b"))
    refused(saga, "has the step b of saga trips.other in its flow")


@pytest.mark.parametrize("name", ["<lambda>", "größe", "a" * 101])
def test_a_step_has_a_name_that_fits_into_a_label(name: str) -> None:
    saga = new_saga()
    saga.flow(add_step(saga, name))
    refused(saga, "at most 100 letters, digits and underscores")


def test_a_saga_has_at_most_one_pivot() -> None:
    saga = new_saga()
    saga.flow(add_pivot(saga, "a") >> add_pivot(saga, "b"))
    refused(saga, "has 2 pivots: a saga has at most one point of no return")


def test_a_pivot_runs_alone() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a") & add_pivot(saga, "p"))
    refused(saga, "has its pivot p beside other steps, which might still fail after the point of")


def test_a_pivot_is_not_inside_a_branch() -> None:
    saga = new_saga()
    a, b, p = add_step(saga, "a"), add_step(saga, "b"), add_pivot(saga, "p")
    saga.flow(a & (b >> p))
    refused(saga, "has its pivot p beside other steps")


# The way back


def test_a_step_after_the_pivot_cannot_fail() -> None:
    saga = new_saga()
    saga.flow(add_pivot(saga, "a") >> add_last(saga, "b") >> add_step(saga, "c", undo="none"))
    refused(saga, "has the step c after its pivot, where the saga only goes forward")


def test_a_step_after_the_pivot_cannot_be_undone() -> None:
    saga = new_saga()
    saga.flow(add_pivot(saga, "a") >> add_step(saga, "b", failed=()))
    refused(saga, "has the step b after its pivot")


def test_a_pivot_itself_may_fail() -> None:
    definition = of_one_step(lambda saga: add_pivot(saga, "p", failed=Failed))
    assert Failed in set(definition.replies())


def test_a_pivot_cannot_be_undone() -> None:
    saga = new_saga()
    pivot = add_pivot(saga, "p")
    add_undo(pivot, "reply")
    saga.flow(pivot)
    refused(saga, "has an undo for its pivot p, which cannot be undone")


def test_a_step_says_how_it_is_undone_or_why_it_need_not_be() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", undo="none", no_undo=""))
    refused(saga, r"has no undo for its step a, so that its effect .* with @a.undo, or say why")


def test_a_step_has_one_undo() -> None:
    step = add_step(new_saga(), "a")
    with pytest.raises(UsageError, match="has two undos: remove one"):
        add_undo(step, "state")


def test_a_step_has_either_an_undo_or_a_reason_for_none() -> None:
    with pytest.raises(UsageError, match="has an undo, but also no_undo="):
        add_step(new_saga(), "a", undo="reply", no_undo="it only reads")


def test_a_wait_has_no_undo() -> None:
    wait = new_saga(key=lambda state: state.trip).wait(
        "approval", ok=Approved, timeout=None, correlate=lambda event: event.trip
    )
    with pytest.raises(UsageError, match="only waits, so there is nothing to undo"):
        wait.undo()(lambda state: Undo(what=""))


def test_a_wait_cannot_be_called() -> None:
    wait = new_saga().wait("approval", ok=Approved, timeout=None, correlate=lambda event: 1)
    with pytest.raises(UsageError, match="only waits: it has no function"):
        wait(Trip())


# Time-outs and options


def test_a_time_out_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r'write how long it may take, such as "30s", or None'):
        add_step(new_saga(), "a", timeout=0)


def book_a_room(state: Trip) -> Do:
    return Do(what="room")


@pytest.mark.parametrize(
    ("declare", "name"),
    [
        (lambda saga: saga.step(ok=Did)(book_a_room), "book_a_room"),
        (lambda saga: saga.pivot(ok=Did)(book_a_room), "book_a_room"),
        (lambda saga: saga.wait("approval", ok=Approved, correlate=str), "approval"),
    ],
    ids=["a step", "a pivot", "a wait"],
)
def test_a_step_without_a_time_out_says_what_to_write(
    declare: Callable[[Any], object], name: str
) -> None:
    with pytest.raises(UsageError, match=rf'{name} of .* write timeout="30s" .* or timeout=None'):
        declare(new_saga())


def test_an_undo_cannot_time_out_at_once() -> None:
    step = add_step(new_saga(), "a", undo="none", no_undo="")
    with pytest.raises(UsageError, match="has timeout=0: write how long it may take"):
        step.undo(ok=Undid, timeout=0)(take_back)


def test_a_reply_has_one_function_that_folds_it() -> None:
    step = add_step(new_saga(), "a")

    def fold(state: Trip, reply: Did) -> Trip:
        return state

    step.done(fold)
    with pytest.raises(UsageError, match=r"has two functions for its reply: remove one @a.done"):
        step.done(fold)


@pytest.mark.parametrize("from_version", [0, 3, 4])
def test_a_migration_is_from_an_older_version(from_version: int) -> None:
    with pytest.raises(UsageError, match="must be between 1 and 2"):
        new_saga(version=3).migrate(from_version=from_version)(lambda state: state)


def test_a_migration_of_a_first_version_says_what_comes_first() -> None:
    with pytest.raises(UsageError, match="there is no older version: raise version= "):
        new_saga(version=1).migrate(from_version=1)(lambda state: state)


def test_a_version_has_one_migration() -> None:
    saga = new_saga(version=3)
    saga.migrate(from_version=2)(lambda state: state)
    with pytest.raises(UsageError, match="has two migrations from version 2"):
        saga.migrate(from_version=2)(lambda state: state)


# The functions


def unannotated(state: Trip):  # type: ignore[no-untyped-def]
    return Do(what="")


def makes_an_event(state: Trip) -> Did:
    return Did()


@pytest.mark.parametrize("function", [unannotated, makes_an_event])
def test_a_step_says_which_command_it_sends(function: Any) -> None:
    saga = new_saga()
    saga.flow(saga.step(ok=Did, timeout=None, no_undo="none")(function))
    refused(saga, f"{function.__name__} must say which command it sends")


def test_an_undo_says_which_command_it_sends() -> None:
    saga = new_saga()
    step = add_step(saga, "a", undo="none", no_undo="")
    step.undo()(unannotated)
    saga.flow(step)
    refused(saga, "unannotated must say which command it sends")


def test_a_step_takes_the_state() -> None:
    saga = new_saga()

    @saga.step(ok=Did, timeout=None, no_undo="none")  # type: ignore[arg-type]
    def other(state: OtherState) -> Do:
        return Do(what="")

    saga.flow(other)
    refused(saga, "other takes state: OtherState, but it may be called with Trip")


def test_a_step_takes_nothing_but_the_state() -> None:
    saga = new_saga()

    @saga.step(ok=Did, timeout=None, no_undo="none")  # type: ignore[arg-type]
    def other(state: Trip, more: int) -> Do:
        return Do(what="")

    saga.flow(other)
    refused(saga, "other takes 2 parameters, and it is called with 1")


def test_a_step_with_items_takes_the_item() -> None:
    saga = new_saga()

    def pick(state: Trip) -> Do:
        return Do(what="")

    step: Any = saga.step(ok=Did, timeout=None, each=lambda state: state.items, no_undo="none")
    saga.flow(step(pick))
    refused(saga, "pick takes 1 parameters, and it is called with 2")


def test_an_undo_takes_the_reply_of_its_step() -> None:
    saga = new_saga()
    step = add_step(saga, "a", undo="none", no_undo="")

    @step.undo()  # type: ignore[arg-type]
    def give_back(state: Trip, reply: Approved) -> Undo:
        return Undo(what="")

    saga.flow(step)
    refused(saga, r"give_back takes reply: Approved, but it may be called with Did\. Take Did\.$")


def undone_by(function: Any) -> Saga[Trip]:
    """A saga of one step with items, which this function undoes."""
    saga = new_saga()
    step = add_step(saga, "pick", undo="none", no_undo="", each=lambda state: state.items)
    step.undo()(function)
    saga.flow(step)
    return saga


def back_by_state(state: Trip) -> Undo:
    return Undo(what="")


def back_by_reply_if_any(state: Trip, reply: Did | None) -> Undo:
    return Undo(what="")


@pytest.mark.parametrize("function", [back_by_state, back_by_reply_if_any])
def test_an_undo_that_may_be_called_without_a_reply_takes_the_item(function: Any) -> None:
    """Else all items would get the same command."""
    with pytest.raises(
        UsageError,
        match=rf"The step pick of saga trips.base has each=: {function.__name__} may be called "
        r"without a reply, and then does not know which item it undoes. Take the item: \(state, "
        r"item\) or \(state, item, reply: Did \| None\); or only \(state, reply: Did\)",
    ):
        undone_by(function)


def back_by_anything(state: Trip, item: Any) -> Undo:
    return Undo(what="")


def back_by_something(state: Trip, item) -> Undo:  # type: ignore[no-untyped-def]
    return Undo(what="")


@pytest.mark.parametrize("function", [back_by_anything, back_by_something])
def test_the_undo_of_an_item_says_whether_it_takes_the_item_or_the_reply(function: Any) -> None:
    with pytest.raises(
        UsageError, match="'item' may be the item or the reply: annotate it with the item's type, "
    ):
        undone_by(function)


def test_an_undo_of_an_item_takes_the_reply_of_its_step() -> None:
    def other_reply(state: Trip, item: str, reply: Approved) -> Undo:
        return Undo(what="")

    def other_reply_only(state: Trip, reply: Approved) -> Undo:
        return Undo(what="")

    def too_many(state: Trip, item: str, reply: Did, more: int) -> Undo:
        return Undo(what="")

    for function in (other_reply, other_reply_only):
        refused(undone_by(function), "takes reply: Approved, but it may be called with Did")
    with pytest.raises(UsageError, match="too_many takes 4 parameters, and it is called with 3"):
        undone_by(too_many)


def test_only_the_undo_of_an_item_takes_one() -> None:
    def give_back(state: Trip, item: str, reply: Did) -> Undo:
        return Undo(what="")

    step: Any = add_step(new_saga(), "a", undo="none", no_undo="")
    with pytest.raises(UsageError, match="give_back takes 3 parameters, and it is called with 2"):
        step.undo()(give_back)


def test_a_fold_takes_the_reply_of_its_step_and_returns_the_state() -> None:
    saga = new_saga()
    a, b = add_step(saga, "a"), add_step(saga, "b")

    @a.done  # type: ignore[arg-type]
    def keep(state: Trip, reply: Approved) -> Trip:
        return state

    saga.flow(a >> b)
    refused(saga, "keep takes reply: Approved, but it may be called with Did")


def test_a_fold_returns_the_state() -> None:
    saga = new_saga()
    a = add_step(saga, "a")

    @a.done  # type: ignore[arg-type]
    def keep(state: Trip, reply: Did) -> OtherState:
        return OtherState()

    saga.flow(a)
    refused(saga, "keep returns OtherState, but it must return the saga's state, Trip")


def test_an_annotation_that_cannot_be_resolved_is_named() -> None:
    saga = new_saga()

    def lost(state: Trip) -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    saga.flow(saga.step(ok=Did, timeout=None, no_undo="none")(lost))
    refused(saga, "lost has an annotation that cannot be resolved.*Import that name at the top")


def test_a_hint_adds_what_is_missing_to_what_is_right_and_leaves_out_what_is_wrong() -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return Trip()

    @saga.undone  # type: ignore[type-var]
    def ended(state: Trip, failure: Failed | str) -> Ended:
        return Ended(how="")

    saga.flow(add_step(saga, "a"))
    refused(saga, r"it may be called with .* Take Failed \| SagaFailure\.$")


def test_a_hint_keeps_what_an_undo_says_about_a_missing_reply() -> None:
    saga = new_saga()
    step: Any = add_step(saga, "a", undo="none", no_undo="")

    @step.undo()
    def give_back(state: Trip, reply: Approved | None) -> Undo:
        return Undo(what="")

    saga.flow(step)
    refused(saga, r"give_back takes reply: .* called with Did\. Take Did \| None\.$")


def test_an_end_says_which_message_it_returns() -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return Trip()

    @saga.completed
    def end(state: Trip):  # type: ignore[no-untyped-def]
        return Ended(how="")

    saga.flow(add_step(saga, "a"))
    refused(saga, "end must say which message it returns, or None")


@pytest.mark.parametrize(
    ("taken", "missing"),
    [(Failed, "Denied, .*SagaFailure"), (SagaFailure, "Failed, Denied"), (TimedOut, "Failed")],
)
def test_the_end_of_an_undone_saga_takes_every_failure(taken: type, missing: str) -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return Trip()

    def undone(state: Trip, failure: Any) -> None:
        return None

    undone.__annotations__["failure"] = taken
    saga.undone(undone)
    saga.flow(add_step(saga, "a", failed=[Failed, Denied]))
    refused(saga, f"undone takes failure: {taken.__name__}, but it may be called with .*{missing}")


@pytest.mark.parametrize("taken", [Any, object, Failed | SagaFailure, BaseModel])
def test_the_end_of_an_undone_saga_may_take_a_wider_type(taken: Any) -> None:
    saga = Saga("trips.base", Trip)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return Trip()

    def undone(state: Trip, failure: Any) -> None:
        return None

    undone.__annotations__["failure"] = taken
    saga.undone(undone)
    saga.flow(add_step(saga, "a", failed=Failed))
    assert saga.definition.undone is undone


def test_every_failure_of_its_own_is_a_saga_failure() -> None:
    assert issubclass(TimedOut, SagaFailure)
    assert issubclass(DeadLettered, SagaFailure)


# The messages


@pytest.mark.parametrize("failed", [Nameless, [Failed, Nameless]])
def test_a_failure_has_a_name(failed: Any) -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", failed=failed))
    refused(saga, "Nameless has no name")


def test_an_answer_has_a_name() -> None:
    saga = new_saga()
    saga.flow(saga.step(ok=Nameless, timeout=None, no_undo="none")(makes_a_command))
    refused(saga, "Nameless has no name")


def makes_a_command(state: Trip) -> Do:
    return Do(what="")


def test_the_starting_event_cannot_answer_a_step() -> None:
    for options in ({"ok": Booked}, {"ok": Did, "failed": [Denied, Booked]}):
        saga = new_saga()
        saga.flow(saga.step(timeout=None, no_undo="none", **options)(makes_a_command))  # type: ignore[call-overload]
        refused(saga, "is started by Booked, which also answers its step makes_a_command")


def test_the_starting_event_cannot_answer_an_undo() -> None:
    saga = new_saga()
    step = add_step(saga, "a", undo="none", no_undo="")
    step.undo(ok=Booked)(take_back)
    saga.flow(step)
    refused(saga, "is started by Booked, which also answers its step a")


def test_an_event_is_either_ok_or_failed() -> None:
    saga = new_saga()
    saga.flow(add_step(saga, "a", failed=[Failed, Did]))
    refused(saga, "for which Did is both ok and failed")


@pytest.mark.parametrize("failed", ["Failed", [Failed, "Denied"], {Do}, Do, None, 7])
def test_what_failed_names_is_an_event(failed: Any) -> None:
    with pytest.raises(UsageError, match="is not an event"):
        add_step(new_saga(), "a", failed=failed)


@pytest.mark.parametrize("ok", ["Did", Do, None])
def test_what_ok_names_is_an_event(ok: Any) -> None:
    with pytest.raises(UsageError, match="is not an event"):
        new_saga().step(ok=ok, timeout=None, no_undo="none")(makes_a_command)


# Events that are found by a key


def test_correlate_needs_a_key() -> None:
    saga = new_saga()
    saga.flow(saga.wait("approval", ok=Approved, timeout=None, correlate=lambda event: event.trip))
    refused(saga, r"with correlate=.* but its sagas have no keys: write Saga\(…, key=lambda state")


def test_a_step_with_items_cannot_be_found_by_a_key() -> None:
    saga = new_saga(key=lambda state: state.trip)
    saga.flow(
        add_step(saga, "a", each=lambda state: state.items, correlate=lambda event: event.part)
    )
    refused(saga, "with each= and correlate=: a key alone does not say which")


def test_two_waits_for_one_event_do_not_run_side_by_side() -> None:
    saga = new_saga(key=lambda state: state.trip)

    def wait(name: str) -> Any:
        return saga.wait(name, ok=Approved, timeout=None, correlate=lambda event: event.trip)

    saga.flow(wait("one") & wait("other"))
    refused(saga, "may wait in one and in other at the same time, and Approved answers both")


def test_two_waits_for_one_event_may_follow_each_other() -> None:
    saga = new_saga(key=lambda state: state.trip)

    def wait(name: str) -> Any:
        return saga.wait(name, ok=Approved, timeout=None, correlate=lambda event: event.trip)

    saga.flow(wait("one") >> wait("other"))
    assert [step.name for step in saga.definition.correlated(Approved)] == ["one", "other"]


def test_a_coroutine_function_cannot_be_a_part_of_a_saga() -> None:
    async def compute(state: Trip) -> Do:
        return Do(what="")

    saga = Saga("trips.plain", Trip)
    step: Any = saga.step(ok=Did, timeout=None)
    for declare in (saga.starts, step, saga.completed, saga.undone):
        with pytest.raises(UsageError, match=r"compute is a coroutine function.*write `def comp"):
            declare(compute)


def test_a_step_with_a_number_of_retries_is_told_to_take_a_policy() -> None:
    def pick(state: Trip) -> Do:
        return Do(what="")

    step: Any = new_saga().step(ok=Did, timeout=None, retry=3)  # type: ignore[call-overload]
    with pytest.raises(UsageError, match=r"The step pick .* has retry=3: write a policy"):
        step(pick)
