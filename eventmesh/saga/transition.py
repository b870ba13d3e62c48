"""What happens next in a saga: a pure function of what has happened so far and one message.

Steps are known by name, so that a saga under way survives a new order of the code. A reply that
does not fit (late, twice, or to a step of no interest any more) changes nothing.
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
    """How far a step is, and the reply it got: the message's name and its data."""

    status: StepStatus
    reply_name: str | None = None
    reply: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """A saga under way. A step that is not in `steps` has not begun."""

    status: Status
    state: BaseModel
    steps: Mapping[str, StepRecord]
    reason: str | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to this saga any more."""
        return self.status in ("completed", "undone")

    def at(self, step: Step) -> StepStatus | None:
        """How far this step is; None before it has begun."""
        record = self.steps.get(step.name)
        return None if record is None else record.status

    def with_step(self, step: Step, record: StepRecord) -> SagaRecord:
        """The same with this step's record changed."""
        return replace(self, steps={**self.steps, step.name: record})


@dataclass(frozen=True, slots=True)
class Sending:
    """A command to send, and the label by which its reply will be known."""

    label: str
    command: Command


@dataclass(frozen=True, slots=True)
class Transition:
    """The saga afterwards, and what is to be sent and published with it in one transaction."""

    record: SagaRecord
    sendings: tuple[Sending, ...] = ()
    ending: Message | None = None


def start(definition: Definition, event: Event) -> Transition:
    """A new saga, with the commands of its first stage."""
    return _forward(definition, SagaRecord("running", definition.begin(event), {}))


def advance(
    definition: Definition, record: SagaRecord, label: str, reply: Event
) -> Transition | None:
    """The saga after this reply to the step or undo of this label; None when it changes nothing."""
    name = label.removesuffix(UNDO_SUFFIX)
    step = next((each for each in definition.steps if each.name == name), None)
    if step is None or record.ended:
        return None
    if label != name:
        undo = step.undoing
        if undo is None or type(reply) is not undo.ok or record.at(step) != "undo_sent":
            return None
        undone = replace(record.steps[name], status="undone")
        return _backward(definition, record.with_step(step, undone))
    if record.at(step) != "sent":
        return None
    if type(reply) is step.ok:
        done = record.with_step(step, _answered("done", reply))
        # When another step has failed meanwhile, this one is undone like the rest.
        move = _backward if record.status == "undoing" else _forward
        return move(definition, done)
    if type(reply) in step.failed:
        reason = record.reason or f"{name}: {reply.__identity__.name}"
        failed = record.with_step(step, _answered("failed", reply))
        return _backward(definition, replace(failed, status="undoing", reason=reason))
    return None


def _forward(definition: Definition, record: SagaRecord) -> Transition:
    """Send what the first unfinished stage has not sent yet; the end when there is none."""
    for stage in definition.stages:
        if all(record.at(each) == "done" for each in stage):
            continue
        sendings = []
        for each in stage:
            if record.at(each) is None:
                sendings.append(Sending(each.name, each.command(record.state)))
                record = record.with_step(each, StepRecord("sent"))
        return Transition(record, tuple(sendings))
    return Transition(replace(record, status="completed"), (), definition.completed(record.state))


def _backward(definition: Definition, record: SagaRecord) -> Transition:
    """Undo the last step that is done, once none is under way; the end when there is none."""
    sendings: list[Sending] = []
    for step in reversed(list(definition.steps)):
        match record.at(step), step.undoing:
            case (("sent" | "undo_sent"), _):
                return Transition(record, tuple(sendings))
            case "done", None:
                record = record.with_step(step, replace(record.steps[step.name], status="undone"))
            case "done", Undo() as undo:
                reply = _revived(step.ok, record.steps[step.name])
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


def _revived(model: type[Event], record: StepRecord) -> Event:
    # Through JSON, as it was read the first time: a strict model takes a date only from there.
    # By name, because an alias may be for reading only.
    return model.model_validate_json(to_json(record.reply), by_name=True, by_alias=False)


def _failure(definition: Definition, record: SagaRecord) -> Event:
    """The reply with which the first failed step of the flow failed."""
    for step in definition.steps:
        answer = record.steps.get(step.name)
        if answer is None or answer.status != "failed":
            continue
        for model in step.failed:
            if model.__identity__.name == answer.reply_name:
                return _revived(model, answer)
    raise AssertionError("a saga is undone only after a step has failed")
