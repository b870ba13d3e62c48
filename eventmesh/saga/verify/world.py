"""A saga and all that surrounds it, as one value: participants, messages under way, time-outs.

The laws of this world, which `moves` keeps:

- A participant does what a command asks, or refuses with a `failed` event, or dead-letters it; a
  dead letter may be replayed once. It works by business key: what is done already is not done
  twice, and is answered with ok again. What was undone is done again by a command that comes late:
  we do not ask participants to remember what they have undone.
- A participant accepts an undo of what it has never done, and it never refuses one.
- Messages and time-outs take any time, and overtake each other. Each may come a second time. A
  time-out that was cancelled, and a command that was withdrawn, may come all the same, because
  they were under way.
- A commit happens or does not happen; what it publishes comes at least once. A crash between two
  commits is therefore seen as a message that comes later, or twice.
- A function of the saga's author fails a bounded number of times, and an operator acts so often.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from eventmesh.saga.draft import Transition
from eventmesh.saga.record import Label, SagaRecord, parse_label

Fate = Literal["delayed", "sent", "done", "refused", "dead", "dropped"]
"""`delayed` is one that a `retry=` sends after a while, and that may be withdrawn until then; one
that is `dropped` was withdrawn in the transition that was to send it."""
UNDER_WAY: tuple[Fate, ...] = ("delayed", "sent")
Effect = Literal["none", "done", "undone"]


class Sent(NamedTuple):
    """A command that was sent, and what has become of it."""

    fate: Fate = "sent"
    reply_due: bool = False
    """Whether its answer is under way."""
    signal_due: bool = False
    """Whether the signal that it was dead-lettered is under way."""
    is_replayed: bool = False
    came_again: bool = False
    """Whether a second copy of its answer, time-out or signal has changed something."""


class Surroundings(NamedTuple):
    """What there is of one unit outside its saga."""

    effect: Effect = "none"
    commands: tuple[Sent, ...] = ()
    undos: tuple[Sent, ...] = ()
    timers: frozenset[str] = frozenset()
    """The labels whose time-outs are set."""
    decision: str = ""
    """For a step that only waits: which event has come from outside, "ok" or "failed"."""
    decided_again: bool = False
    is_excused: bool = False
    """Whether an operator has said that it counts as undone."""


NOTHING = Surroundings()


@dataclass(frozen=True, slots=True)
class World:
    """A saga and its surroundings, by unit. `announced` counts how often its end was announced."""

    record: SagaRecord
    units: Mapping[str, Surroundings]
    announced: int = 0
    operator_actions: int = 0
    function_errors: int = 0
    """How often a function of the author has failed."""

    def of(self, unit: str) -> Surroundings:
        """What there is of this unit outside the saga."""
        return self.units.get(unit, NOTHING)

    @property
    def is_quiescent(self) -> bool:
        """Whether nothing is under way that must come."""
        return not any(
            around.timers
            or any(
                sent.fate in UNDER_WAY or sent.reply_due or sent.signal_due
                for sent in (*around.commands, *around.undos)
            )
            for around in self.units.values()
        )

    def sent(self, label: Label) -> Sent:
        """What has become of the command with this label."""
        around = self.units[label.unit]
        return (around.undos if label.is_undo else around.commands)[label.attempt - 1]

    def with_sent(self, label: Label, sent: Sent, effect: Effect | None = None) -> World:
        """This world, when something else has become of that command."""
        around, number = self.units[label.unit], label.attempt - 1
        if label.is_undo:
            undos = (*around.undos[:number], sent, *around.undos[number + 1 :])
            around = around._replace(undos=undos)
        else:
            commands = (*around.commands[:number], sent, *around.commands[number + 1 :])
            around = around._replace(commands=commands)
        return self.with_unit(label.unit, around._replace(effect=effect or around.effect))

    def without_timer(self, label: Label) -> World:
        """This world, when that time-out is not set any more."""
        around = self.of(label.unit)
        return self.with_unit(label.unit, around._replace(timers=around.timers - {str(label)}))

    def without_delay(self, label: Label) -> World:
        """This world, when the delay of that command is over, or it is withdrawn too late."""
        around = self.of(label.unit)
        sent = around.undos if label.is_undo else around.commands
        if len(sent) < label.attempt or sent[label.attempt - 1].fate != "delayed":
            return self
        return self.with_sent(label, sent[label.attempt - 1]._replace(fate="sent"))

    def with_unit(self, unit: str, around: Surroundings) -> World:
        """This world, with other surroundings of a unit."""
        units = {**self.units, unit: around}
        return World(
            self.record, units, self.announced, self.operator_actions, self.function_errors
        )

    def after(self, transition: Transition) -> World:
        """This world when the saga has committed a transition."""
        units = dict(self.units)
        for sending in transition.sendings:
            label = label_of(sending.label)
            around = units.get(label.unit, NOTHING)
            before = around.undos if label.is_undo else around.commands
            dropped = [Sent("dropped")] * (label.attempt - 1 - len(before))
            after = (*before, *dropped, Sent("delayed" if sending.delay > 0 else "sent"))
            units[label.unit] = (
                around._replace(undos=after) if label.is_undo else around._replace(commands=after)
            )
        for text in transition.timers:
            unit = label_of(text).unit
            around = units.get(unit, NOTHING)
            units[unit] = around._replace(timers=around.timers | {text})
        for text in transition.cancelled:
            unit = label_of(text).unit
            around = units.get(unit, NOTHING)
            units[unit] = around._replace(timers=around.timers - {text})
        announced = self.announced + (transition.ending is not None)
        record = transition.record
        world = World(record, units, announced, self.operator_actions, self.function_errors)
        for text in transition.withdrawn:
            world = world.without_delay(label_of(text))
        return world


@cache
def label_of(text: str) -> Label:
    """The label of a text that is one."""
    label = parse_label(text)
    if label is None:
        raise AssertionError(f"{text!r} is not a label")
    return label
