"""What may happen to a saga, and the errors that say why it cannot be applied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eventmesh.contracts.message import Event
from eventmesh.errors import EventMeshError, UnreadableMessage
from eventmesh.runtime.declaring.retry import summarize
from eventmesh.saga.definition import Definition
from eventmesh.saga.record import Reply, Stored, read_stored, stored


class UnexpectedAnswer(EventMeshError):
    """An answer to a command that its saga has never sent."""


class UnknownStep(EventMeshError):
    """An answer to a step that this version of the code does not have."""


class FunctionFailed(EventMeshError):
    """A function of the saga's author has raised an error."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An event has come: with the label of the command it answers, or found by its key (None)."""

    event: Event
    label: str | None


@dataclass(frozen=True, slots=True)
class WaitedTooLong:
    """The time-out of the command with this label has passed."""

    label: str


@dataclass(frozen=True, slots=True)
class CommandDeadLettered:
    """A participant has dead-lettered the command with this label."""

    label: str
    reason: str


Operation = Literal["retry", "skip", "undo", "cancel"]


@dataclass(frozen=True, slots=True)
class OperatorAction:
    """An operator's decision. `reason` says why, `step` which unit is meant where several wait.

    `retry` sends again what waits, and lets a parked saga go on. `skip` goes on as if the step had
    been done (or undone). `undo` undoes the saga, before its pivot. `cancel` ends it as it is.

    `row_version` is that of the row on which the decision was made. A saga that has changed since
    is left alone: what it waits for by now may be another step. None is for the saga as it is.
    """

    operation: Operation
    reason: str
    step: str | None = None
    row_version: int | None = None


Happening = Answered | WaitedTooLong | CommandDeadLettered | OperatorAction


def hold_as(happening: Happening) -> Mapping[str, Any]:
    match happening:
        case Answered(event, label):
            kept = stored(event)
            return {
                "answered": label,
                "name": kept.name,
                "data": dict(kept.data),
                "version": kept.version,
            }
        case WaitedTooLong(label):
            return {"waited_too_long": label}
        case CommandDeadLettered(label, reason):
            return {"dead_lettered": label, "reason": reason}
    raise AssertionError(happening)


def read_held(kept: Mapping[str, Any], definition: Definition) -> Happening:
    """What was kept; FunctionFailed where nothing in the code takes it, or reads it, any more."""
    if "waited_too_long" in kept:
        return WaitedTooLong(kept["waited_too_long"])
    if "dead_lettered" in kept:
        return CommandDeadLettered(kept["dead_lettered"], kept["reason"])
    for model in definition.replies():
        if model.__identity__.name == kept["name"]:
            event = Stored(kept["name"], kept["data"], kept.get("version"))
            return Answered(read_kept(model, event), kept["answered"])
    raise FunctionFailed(f"{kept['name']}, which was held, answers no step any more")


def read_kept(model: type[Reply], kept: Stored) -> Reply:
    """The event that a record keeps; FunctionFailed where it cannot be read: an upcaster or a
    validator of it is the author's, too."""
    try:
        return read_stored(model, kept)
    except Exception as error:
        why = str(error) if isinstance(error, UnreadableMessage) else summarize(error)
        raise FunctionFailed(f"the stored {kept.name} cannot be read: {why}") from error
