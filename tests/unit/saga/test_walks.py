"""Random walks: whatever participants do, whenever it arrives, nothing is left behind.

Each walk runs a saga against a model of its participants. A participant does what a command asks,
refuses it, or dead-letters it, and a dead letter may be replayed later. Commands, answers and
time-outs arrive in any order, the last two perhaps twice, and an operator may retry or undo in
between. Then everything that is still under way is delivered, and:

- a saga that has ended undone has left no effect of a step that has an undo;
- a saga that has completed has the effects of all its steps;
- each saga ends, and says so once.

Every record on the way is written to a row and read back (see `Story`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventmesh import Event, Saga
from eventmesh.errors import UsageError
from eventmesh.saga.flow import Step
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    Happening,
    OperatorAction,
    WaitedTooLong,
)
from eventmesh.saga.record import Label, parse_label
from tests.unit.saga.trips import (
    TWICE,
    Approved,
    Booked,
    Denied,
    Did,
    Failed,
    Story,
    Trip,
    Undid,
    UndoForm,
    add_last,
    add_pivot,
    add_step,
    new_saga,
)


def in_series(undo: UndoForm) -> Saga[Trip]:
    saga = new_saga()
    a, b, c = (add_step(saga, name, undo=undo, undo_retry=TWICE) for name in "abc")
    saga.flow(a >> b >> c)
    return saga


def retried(undo: UndoForm) -> Saga[Trip]:
    saga = new_saga()
    a, b = (add_step(saga, name, undo=undo, retry=TWICE, undo_retry=TWICE) for name in "ab")
    saga.flow(a >> b)
    return saga


def side_by_side() -> Saga[Trip]:
    saga = new_saga()
    a, b = add_step(saga, "a", retry=TWICE), add_step(saga, "b", undo="silent")
    c, d = add_step(saga, "c", undo="optional"), add_step(saga, "d", undo="state", retry=TWICE)
    saga.flow((a & b >> c) >> d)
    return saga


def with_pivot() -> Saga[Trip]:
    saga = new_saga()
    a, b, p = add_step(saga, "a"), add_step(saga, "b", undo="silent"), add_pivot(saga, "p")
    y, z = add_last(saga, "y", retry=TWICE), add_last(saga, "z", retry=TWICE)
    saga.flow((a & b) >> p >> (y & z))
    return saga


def with_items(undo: UndoForm) -> Saga[Trip]:
    saga = new_saga()
    pick = add_step(saga, "pick", each=lambda state: state.items, retry=TWICE, undo=undo)
    a = add_step(saga, "a", when=lambda state: state.wanted)
    saga.flow(pick >> a >> add_step(saga, "b", undo="silent with reply"))
    return saga


def with_wait() -> Saga[Trip]:
    saga = new_saga(key=lambda state: state.trip)
    approval = saga.wait(
        "approval", ok=Approved, failed=Denied, timeout="2d", correlate=lambda event: event.trip
    )
    a, b, c = (add_step(saga, name) for name in "abc")
    saga.flow((a & approval) >> b >> c)
    return saga


SAGAS = {
    "undos with their reply": in_series("reply"),
    "undos of the state": in_series("state"),
    "undos with or without a reply": in_series("optional"),
    "silent undos": in_series("silent"),
    "silent undos with their reply": in_series("silent with reply"),
    "sent twice, undone with their reply": retried("reply"),
    "sent twice, undone by the state": retried("state"),
    "sent twice, undone silently": retried("silent"),
    "side by side": side_by_side(),
    "a pivot": with_pivot(),
    "items undone with their reply, and a condition": with_items("item and reply"),
    "items undone at once, and a condition": with_items("item and optional"),
    "a wait": with_wait(),
}


@dataclass(frozen=True)
class Command:
    """A command on its way to its participant."""

    label: Label


Moving = Command | Happening
"""What is on its way: a command to a participant, or something to the saga."""

Conduct = Literal["do", "refuse", "dead-letter", "dead-letter and replay"]


class World:
    """A saga, its participants, and all that is on its way between them."""

    def __init__(self, saga: Saga[Trip]) -> None:
        self.story = Story(saga, Booked(items=("x", "y")))
        self.effects: set[str] = set()
        """The units whose effect is there."""
        self.excused: set[str] = set()
        """Those for which the saga was parked because nothing undoes them."""
        self.moving: list[Moving] = []
        self.history: list[object] = []
        self._sent()

    def step(self, label: Label) -> Step[Trip, Event]:
        return self.story.definition.steps[label.step]

    def deliver(self, moving: Moving, conduct: Conduct = "do") -> None:
        self.moving.remove(moving)
        self.history.append((moving, conduct))
        if isinstance(moving, Command):
            self._participate(moving, conduct)
        else:
            self.tell(moving)

    def tell(self, happening: Happening) -> None:
        self.story.tell(happening)
        if self.story.rule == "late: parked" and isinstance(happening, Answered):
            self.excused.add(self.story.record.parking.unit)  # type: ignore[union-attr, arg-type]
        self._sent()

    def operate(self, operation: Literal["retry", "undo"]) -> None:
        self.history.append(operation)
        try:
            self.tell(OperatorAction(operation, "because"))
        except UsageError:
            self.history.append("not possible")

    def _participate(self, command: Command, conduct: Conduct) -> None:
        label = command.label
        answer: Event | None = None
        match conduct:
            case "do" if label.is_undo:
                self.effects.discard(label.unit)
                undoing = self.step(label).undoing
                answer = Undid() if undoing is not None and undoing.ok is not None else None
            case "do":
                self.effects.add(label.unit)
                answer = Did()
            case "refuse" if self.step(label).failed and not label.is_undo:
                # A participant is idempotent: what it has done already, it does not refuse.
                answer = Did() if label.unit in self.effects else Failed()
            case _:
                self.moving.append(CommandDeadLettered(str(label), "it failed"))
                if conduct == "dead-letter and replay":
                    self.moving.append(command)
        if answer is not None:
            self.moving.append(Answered(answer, str(label)))

    def _sent(self) -> None:
        transition = self.story.transition
        for sending in transition.sendings:
            label = parse_label(sending.label)
            assert label is not None
            self.moving.append(Command(label))
        self.moving += [WaitedTooLong(label) for label in transition.timers]
        for label in transition.cancelled:
            timer = WaitedTooLong(label)
            if timer in self.moving:
                self.moving.remove(timer)

    def settle(self) -> None:
        """Deliver everything, time-outs last, until the saga has ended."""
        for _ in range(300):
            first = [each for each in self.moving if not isinstance(each, WaitedTooLong)]
            if first or self.moving:
                self.deliver((first or self.moving)[0])
            elif self.story.status == "parked":
                self.operate("retry")
            else:
                break
        assert self.moving == [], self.history
        assert self.story.record.ended, (self.story.record, self.history)


def units_to_be_done(world: World) -> Iterator[str]:
    """The units of commands that a completed saga has to have sent."""
    for name, unit in world.story.record.units.items():
        label = parse_label(name)
        assert label is not None
        if world.step(label).command is None or unit.status == "skipped" or unit.items is not None:
            continue
        yield name


CONDUCTS: tuple[Conduct, ...] = ("do", "do", "refuse", "dead-letter", "dead-letter and replay")


@pytest.mark.parametrize("saga", SAGAS.values(), ids=SAGAS)
@settings(max_examples=30)
@given(data=st.data())
def test_nothing_is_left_behind(saga: Saga[Trip], data: st.DataObject) -> None:
    world = World(saga)
    for _ in range(data.draw(st.integers(0, 30))):
        what = data.draw(st.integers(0, 15))
        if what == 0:
            world.operate(data.draw(st.sampled_from(["retry", "undo"])))
        elif what == 1 and "approval" in world.story.definition.steps:
            world.tell(Answered(data.draw(st.sampled_from([Approved(), Denied()])), None))
        elif world.moving:
            moving = data.draw(st.sampled_from(world.moving))
            world.deliver(moving, data.draw(st.sampled_from(CONDUCTS)))
            if not isinstance(moving, Command) and data.draw(st.integers(0, 4)) == 0:
                world.moving.append(moving)  # and once more
    world.settle()
    if world.story.status == "completed":
        assert world.effects == set(units_to_be_done(world)), world.history
    else:
        assert world.story.status == "undone"
        assert world.effects <= world.excused, world.history
    assert len(world.story.endings) == 1, world.history
