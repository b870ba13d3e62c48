"""What may happen in a world, and the world afterwards.

A move is one thing that happens to one command, time-out or message; `make` applies the saga's
transition where the saga hears of it. Most messages arrive right after they were sent, so the move
`answered` is two things at once: the participant handles the command, and its answer reaches the
saga. Where something may come between the two, `handled` and `delivered` are moves of their own.

Each move has a number of *deviations* from a run in which every command is answered once and in
time. The exploration visits the worlds with few deviations first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from eventmesh.saga.draft import Transition, units_of
from eventmesh.saga.flow import Step
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    Happening,
    OperatorAction,
    WaitedTooLong,
)
from eventmesh.saga.record import Label, SagaRecord
from eventmesh.saga.verify.rules import RememberedRules
from eventmesh.saga.verify.twin import Begin, Twin, TwinState
from eventmesh.saga.verify.world import UNDER_WAY, Effect, Sent, Surroundings, World, label_of

Kind = Literal[
    "started",
    "answered",
    "handled",
    "delivered",
    "dead_lettered",
    "buried",
    "told",
    "replayed",
    "timed_out",
    "answered_again",
    "timed_out_again",
    "told_again",
    "decided",
    "decided_again",
    "operator",
]
"""`buried` is a dead letter of which the saga has not heard yet, and `told` is when it does."""

AGAIN: frozenset[Kind] = frozenset(
    {"answered_again", "timed_out_again", "told_again", "decided_again"}
)
"""Moves of second copies. They are possible at any time, and almost never change anything."""


ARRIVALS: frozenset[Kind] = frozenset({"delivered", "told", "timed_out"})
"""Moves in which the saga hears of something that was under way."""


class Move(NamedTuple):
    """Something that happens.

    `subject` is a label, or a unit where `kind` is `decided` or `operator`. `detail` is "ok" or
    "failed", or the operator's operation. `choices` are the answers of `when=` and `each=` that
    are needed for the first time.
    """

    kind: Kind
    subject: str = ""
    detail: str = ""
    deviations: int = 0
    choices: tuple[tuple[str, int], ...] = ()
    is_failing: bool = False
    """Whether a function of the author fails meanwhile."""


class Made(NamedTuple):
    """The world after a move, and what the saga did; None where it did not hear of anything."""

    world: World
    transition: Transition | None


# What may happen


class Moves:
    """Lists what may happen next, also what will not change anything."""

    def __init__(self, twin: Twin, operator_actions: int) -> None:
        self._twin = twin
        self._operator_actions = operator_actions
        self._of_unit: dict[tuple[str, Surroundings], tuple[Move, ...]] = {}

    def of(self, world: World) -> list[Move]:
        """The moves of this world."""
        found: list[Move] = []
        for step in self._twin.definition.steps.values():
            if step.command is None:
                found += _moves_of_wait(self._twin, step, world)
                continue
            for name in units_of(step, world.record.units):
                around = world.units.get(name)
                if around is None:
                    continue
                moves = self._of_unit.get((name, around))
                if moves is None:
                    moves = tuple(_moves_of_unit(self._twin, step, name, around))
                    self._of_unit[name, around] = moves
                found += moves
        if world.operator_actions < self._operator_actions and not world.record.ended:
            found += _moves_of_operator(world.record)
        return found


def _moves_of_unit(
    twin: Twin, step: Step[Any, Any], name: str, around: Surroundings
) -> Iterator[Move]:
    label = label_of(name)
    can_refuse = step.name in twin.refusals and around.effect != "done"
    for number, sent in enumerate(around.commands, 1):
        text = str(replace(label, attempt=number))
        yield from _moves_of_command(text, sent, can_refuse=can_refuse, is_answered=True)
        if step.timeout is not None and text not in around.timers and not sent.came_again:
            yield Move("timed_out_again", text, "", 1)
    is_answered = step.name in twin.undos
    for number, sent in enumerate(around.undos, 1):
        text = str(replace(label, is_undo=True, attempt=number))
        yield from _moves_of_command(text, sent, can_refuse=False, is_answered=is_answered)
        if is_answered and text not in around.timers and not sent.came_again:
            yield Move("timed_out_again", text, "", 1)
    for text in sorted(around.timers):
        yield Move("timed_out", text, "", 1)


def _moves_of_command(
    label: str, sent: Sent, *, can_refuse: bool, is_answered: bool
) -> Iterator[Move]:
    """What may become of a command, and of the messages about it."""
    detail = "failed" if sent.fate == "refused" else "ok"
    if sent.fate in UNDER_WAY:
        for answer in ("ok", "failed") if can_refuse else ("ok",):
            if is_answered:
                yield Move("answered", label, answer)
            yield Move("handled", label, answer, 1 if is_answered else 0)
        if not sent.is_replayed:
            yield Move("dead_lettered", label, "", 1)
            yield Move("buried", label, "", 2)
    if sent.reply_due:
        yield Move("delivered", label, detail)
    if sent.signal_due:
        yield Move("told", label)
    if sent.fate == "dead" and not sent.is_replayed:
        yield Move("replayed", label, "", 1)
    if sent.came_again:
        return
    if sent.fate in ("done", "refused") and is_answered and not sent.reply_due:
        yield Move("answered_again", label, detail, 1)
    if (sent.fate == "dead" or sent.is_replayed) and not sent.signal_due:
        yield Move("told_again", label, "", 1)


def _moves_of_wait(twin: Twin, step: Step[Any, Any], world: World) -> Iterator[Move]:
    """What may come from outside for a step that only waits, before it has begun, too."""
    around, unit = world.of(step.name), world.record.units.get(step.name)
    if not around.decision:
        deviations = 0 if unit is not None and unit.status == "sent" else 1
        yield Move("decided", step.name, "ok", deviations)
        if step.name in twin.refusals:
            yield Move("decided", step.name, "failed", deviations)
    elif not around.decided_again:
        yield Move("decided_again", step.name, around.decision, 1)
    if unit is None or step.timeout is None:
        return
    for text in sorted(around.timers):
        yield Move("timed_out", text, "", 1)
    for attempt in () if around.decided_again else range(1, unit.attempt + 1):
        text = str(Label(step.name, attempt=attempt))
        if text not in around.timers:
            yield Move("timed_out_again", text, "", 1)


def _moves_of_operator(record: SagaRecord) -> Iterator[Move]:
    """What an operator may do: they are expected where a saga is parked, and meddle elsewhere."""
    parked = None if record.parking is None else record.parking.unit
    if record.parking is not None:
        yield Move("operator", "", "retry")
    for name, unit in record.units.items():
        if parked == name:
            yield Move("operator", name, "skip")
        elif unit.status in ("sent", "undo_sent"):
            yield Move("operator", name, "skip", 2)
            yield Move("operator", name, "retry", 2)
    yield Move("operator", "", "undo", 1)
    yield Move("operator", "", "cancel", 1)


# What it does


def begin(rules: RememberedRules, twin: Twin, move: Move) -> Made:
    """The first world of a saga."""
    transition = rules.start(Begin(choices=dict(move.choices), is_failing=move.is_failing))
    made = Made(World(transition.record, {}).after(transition), transition)
    return _repaired(rules, made) if move.is_failing else made


def make(rules: RememberedRules, twin: Twin, world: World, move: Move) -> Made:
    """The world after a move. Raises what the transition raises, and Undecided where the move
    needs another choice."""
    if move.choices or move.is_failing:
        choices = {**_state(world).choices, **dict(move.choices)}
        world = _with_state(rules, world, TwinState(choices=choices, is_failing=move.is_failing))
    made = _make(rules, twin, world, move)
    return _repaired(rules, made) if move.is_failing else made


def _state(world: World) -> TwinState:
    assert isinstance(world.record.state, TwinState)  # noqa: S101  # only twins are verified
    return world.record.state


def _with_state(rules: RememberedRules, world: World, state: TwinState) -> World:
    return replace(world, record=rules.one(replace(world.record, state=state)))


def _repaired(rules: RememberedRules, made: Made) -> Made:
    """The author has corrected the mistake."""
    state = TwinState(choices=_state(made.world).choices)
    world = _with_state(rules, made.world, state)
    return Made(replace(world, function_errors=world.function_errors + 1), made.transition)


def _make(rules: RememberedRules, twin: Twin, world: World, move: Move) -> Made:
    if move.kind == "operator":
        return _operate(rules, twin, world, move)
    if move.kind in ("decided", "decided_again"):
        return _decide(rules, twin, world, move)
    label = label_of(move.subject)
    step = twin.definition.steps[label.step]
    if move.kind in ("timed_out", "timed_out_again"):
        world = world.without_timer(label).without_delay(label)  # which was over before
        return _tell(rules, world, WaitedTooLong(move.subject), move)
    sent = world.sent(label)
    if move.kind == "replayed":
        return Made(world.with_sent(label, sent._replace(fate="sent", is_replayed=True)), None)
    if move.kind in ("dead_lettered", "buried", "told", "told_again"):
        is_due = move.kind == "buried"
        fate = "dead" if move.kind in ("dead_lettered", "buried") else sent.fate
        world = world.with_sent(label, sent._replace(fate=fate, signal_due=is_due))
        if is_due:
            return Made(world, None)
        return _tell(rules, world, CommandDeadLettered(move.subject, "dead-lettered"), move)
    if move.kind in ("answered", "handled"):
        is_due = move.kind == "handled" and (not label.is_undo or step.name in twin.undos)
        fate = "done" if move.detail == "ok" else "refused"
        effect = _effect(world, label, move.detail)
        world = world.with_sent(label, sent._replace(fate=fate, reply_due=is_due), effect)
        if move.kind == "handled":
            return Made(world, None)
    else:
        world = world.with_sent(label, sent._replace(reply_due=False))
    return _answer(rules, twin, world, label, move)


def _effect(world: World, label: Label, answer: str) -> Effect:
    """What there is of a unit when its participant has handled this command."""
    before = world.of(label.unit).effect
    if label.is_undo:
        return "undone" if before == "done" else before
    return "done" if answer == "ok" else before


def _answer(rules: RememberedRules, twin: Twin, world: World, label: Label, move: Move) -> Made:
    step = twin.definition.steps[label.step]
    if label.is_undo:
        event = twin.undos[label.step]
    else:
        event = (twin.oks if move.detail == "ok" else twin.refusals)[label.step]
    if step.correlate is None or label.is_undo:
        return _tell(rules, world, Answered(event, str(label)), move)
    return _tell(rules, world, Answered(event, None), move)


def _decide(rules: RememberedRules, twin: Twin, world: World, move: Move) -> Made:
    if move.kind == "decided":
        around = world.of(move.subject)._replace(decision=move.detail)
        world = world.with_unit(move.subject, around)
    event = (twin.oks if move.detail == "ok" else twin.refusals)[move.subject]
    return _tell(rules, world, Answered(event, None), move)


def _operate(rules: RememberedRules, twin: Twin, world: World, move: Move) -> Made:
    operation: Any = move.detail
    action = OperatorAction(operation, "verify", move.subject or None)
    transition = rules.advance(world.record, action)
    for name in _excused(twin, world.record, move):
        world = world.with_unit(name, world.of(name)._replace(is_excused=True))
    world = replace(world, operator_actions=world.operator_actions + 1)
    return Made(world.after(transition), transition)


def _excused(twin: Twin, record: SagaRecord, move: Move) -> Iterator[str]:
    """The units for whose effects an operator answers: the undo that they skip, and a pivot that
    was done after the saga had been undone, for which it is parked until they let it go on."""
    for name, unit in record.units.items():
        if move.subject not in ("", name):
            continue
        is_pivot = twin.definition.steps[label_of(name).step].is_pivot
        before = record.parking.before if record.parking else "running"
        parked_pivot = is_pivot and before == "undoing" and unit.status == "done"
        if (move.detail == "skip" and unit.status != "sent") or (
            move.detail == "retry" and parked_pivot
        ):
            yield name


def _tell(rules: RememberedRules, world: World, happening: Happening, move: Move) -> Made:
    """The world when its saga has heard of something."""
    transition = rules.advance(world.record, happening)
    if not changes(transition):
        return Made(world, transition)
    if move.kind in AGAIN:
        world = _came_again(world, move)
    return Made(world.after(transition), transition)


def _came_again(world: World, move: Move) -> World:
    label = label_of(move.subject)
    around = world.units.get(label.unit)
    if move.kind == "decided_again" or around is None or not around.commands:
        around = world.of(label.unit)._replace(decided_again=True)
        return world.with_unit(label.unit, around)
    return world.with_sent(label, world.sent(label)._replace(came_again=True))


def changes(transition: Transition) -> bool:
    """Whether a transition does anything."""
    return transition.has_changed or bool(transition.sendings) or transition.ending is not None
