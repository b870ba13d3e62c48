"""What happens next in a saga: a pure function of its record and one reply.

`start` and `advance` read a definition and a record and return the next record together with the
commands to send. They touch no database and no broker, so every path through a saga can be walked
in a unit test. For `flow = reserve >> capture`, where only `reserve` has an undo:

    reply               record afterwards                   commands to send
    (start)             running: reserve sent               reserve
    reserve ok          running: reserve done, capture sent capture
    capture failed      undoing: reserve undo_sent          reserve:undo
    reserve:undo ok     undone: reserve undone              none, and the end is published

Steps are identified by name, so a running saga survives a reordering of the code. A reply that
does not fit, because it is late, a duplicate or for a step that is no longer open, changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import to_json

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.saga.definition import UNDO_SUFFIX, Definition, Step, Undo

Status = Literal["running", "undoing", "completed", "undone"]
StepStatus = Literal["sent", "done", "failed", "undo_sent", "undone"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The status of a step, and its reply: the message's name and its data."""

    status: StepStatus
    reply_name: str | None = None
    reply: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """The progress of one saga. A step that is not in `steps` has not been sent."""

    status: Status
    state: BaseModel
    steps: Mapping[str, StepRecord]
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether no further message can change this saga."""
        return self.status in ("completed", "undone")

    def status_of(self, step: Step) -> StepStatus | None:
        """The status of this step; None before it has been sent."""
        record = self.steps.get(step.name)
        return None if record is None else record.status

    def with_step(self, step: Step, record: StepRecord) -> SagaRecord:
        """A copy with this step's record replaced."""
        return replace(self, steps={**self.steps, step.name: record})


@dataclass(frozen=True, slots=True)
class Sending:
    """A command to send, and the label that its reply will carry."""

    label: str
    command: Command


@dataclass(frozen=True, slots=True)
class Transition:
    """The next record, and what is sent and published in the same transaction."""

    record: SagaRecord
    sendings: tuple[Sending, ...] = ()
    ending: Message | None = None


def start(definition: Definition, event: Event) -> Transition:
    """Begin a saga, with the commands of its first stage."""
    return _forward(definition, SagaRecord("running", definition.begin(event), {}))


def advance(
    definition: Definition, record: SagaRecord, label: str, reply: Event
) -> Transition | None:
    """Apply the reply to the step or undo with this label; None when it changes nothing."""
    name = label.removesuffix(UNDO_SUFFIX)
    step = next((each for each in definition.steps if each.name == name), None)
    if step is None or record.ended:
        return None
    if label != name:
        undo = step.undoing
        if undo is None or type(reply) is not undo.ok or record.status_of(step) != "undo_sent":
            return None
        undone = replace(record.steps[name], status="undone")
        return _backward(definition, record.with_step(step, undone))
    if record.status_of(step) != "sent":
        return None
    if type(reply) is step.ok:
        done = record.with_step(step, _answered("done", reply))
        # If another step of the stage has failed meanwhile, this one is undone with the rest.
        move = _backward if record.status == "undoing" else _forward
        return move(definition, done)
    if type(reply) in step.failed:
        reason = record.reason or f"{name}: {reply.__identity__.name}"
        failed = record.with_step(step, _answered("failed", reply))
        return _backward(definition, replace(failed, status="undoing", reason=reason))
    return None


def _forward(definition: Definition, record: SagaRecord) -> Transition:
    """Send the unsent steps of the first unfinished stage; complete the saga if there is none."""
    for stage in definition.stages:
        if all(record.status_of(each) == "done" for each in stage):
            continue
        sendings = []
        for each in stage:
            if record.status_of(each) is None:
                sendings.append(Sending(each.name, each.command(record.state)))
                record = record.with_step(each, StepRecord("sent"))
        return Transition(record, tuple(sendings))
    return Transition(replace(record, status="completed"), (), definition.completed(record.state))


def _backward(definition: Definition, record: SagaRecord) -> Transition:
    """Undo the last completed step, once no reply is outstanding; end the saga if none is left."""
    sendings: list[Sending] = []
    for step in reversed(list(definition.steps)):
        match record.status_of(step), step.undoing:
            case (("sent" | "undo_sent"), _):
                return Transition(record, tuple(sendings))
            case "done", None:
                record = record.with_step(step, replace(record.steps[step.name], status="undone"))
            case "done", Undo() as undo:
                reply = _parsed_reply(step.ok, record.steps[step.name])
                sendings.append(Sending(step.name + UNDO_SUFFIX, undo.command(record.state, reply)))
                waits = undo.ok is not None
                status: StepStatus = "undo_sent" if waits else "undone"
                record = record.with_step(step, replace(record.steps[step.name], status=status))
                if waits:
                    return Transition(record, tuple(sendings))
    failure = _failure(definition, record)
    ending = definition.undone(record.state, failure)
    return Transition(replace(record, status="undone"), tuple(sendings), ending)


def _answered(status: StepStatus, reply: Event) -> StepRecord:
    data = reply.model_dump(mode="json", by_alias=False)
    return StepRecord(status, reply.__identity__.name, data)


def _parsed_reply(model: type[Event], record: StepRecord) -> Event:
    # Through JSON, as it arrived: a strict model accepts a date as text only from JSON.
    # By name, because an alias may be for validation only.
    return model.model_validate_json(to_json(record.reply), by_name=True, by_alias=False)


def _failure(definition: Definition, record: SagaRecord) -> Event:
    """The reply of the first step in the flow that failed."""
    for step in definition.steps:
        answer = record.steps.get(step.name)
        if answer is None or answer.status != "failed":
            continue
        for model in step.failed:
            if model.__identity__.name == answer.reply_name:
                return _parsed_reply(model, answer)
    raise AssertionError("a saga is undone only after a step has failed")
