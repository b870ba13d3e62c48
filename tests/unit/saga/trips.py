"""Sagas made for tests, and a driver that tells them what has happened.

Every record that the driver gets is written to a row and read back, as the coordinator does, so
each test that uses it also checks that nothing is lost on the way through the database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel

from eventmesh import Command, Event, Retry, Saga, SagaFailure, constant
from eventmesh.contracts.message import Message
from eventmesh.persistence.sagas import SagaRow
from eventmesh.saga.definition import Definition
from eventmesh.saga.draft import Transition
from eventmesh.saga.flow import Step
from eventmesh.saga.happening import (
    Answered,
    CommandDeadLettered,
    Happening,
    Operation,
    OperatorAction,
    WaitedTooLong,
)
from eventmesh.saga.record import SagaRecord, UnitRecord
from eventmesh.saga.storage import record_of, row_of
from eventmesh.saga.transition import advance, start


class Trip(BaseModel):
    """The state of all sagas here."""

    trip: int = 1
    items: tuple[str, ...] = ()
    wanted: bool = True
    seen: tuple[str, ...] = ()
    breaks: bool = False


class Booked(Event, name="trips.booked", version=1):
    items: tuple[str, ...] = ()
    wanted: bool = True


class Ended(Event, name="trips.ended", version=1):
    how: str


class Do(Command, name="parts.do", version=1):
    what: str


class Undo(Command, name="parts.undo", version=1):
    what: str
    reply: str | None = None


class Did(Event, name="parts.did", version=1):
    part: str = "a part"


class Failed(Event, name="parts.failed", version=1):
    why: str = "full"


class Undid(Event, name="parts.undid", version=1):
    pass


class Approved(Event, name="people.approved", version=1):
    trip: int = 1


class Denied(Event, name="people.denied", version=1):
    trip: int = 1


class Elsewhere(Event, name="people.elsewhere", version=1):
    trip: int = 1


UndoForm = Literal[
    "state",
    "reply",
    "optional",
    "silent",
    "silent with reply",
    "item",
    "item and reply",
    "item and optional",
    "none",
]

TWICE = Retry(attempts=2, backoff=constant("5s"), jitter=0.0)
ONCE = Retry(attempts=1)


def new_saga(name: str = "trips.base", **options: Any) -> Saga[Trip]:
    """A saga without steps, which says how it ended."""
    saga = Saga(name, Trip, **options)

    @saga.starts
    def begin(event: Booked) -> Trip:
        return Trip(items=event.items, wanted=event.wanted)

    @saga.completed
    def completed(state: Trip) -> Ended:
        if state.breaks:
            raise ValueError("the author's mistake")
        return Ended(how="completed")

    @saga.undone
    def undone(state: Trip, failure: Event | SagaFailure) -> Ended:
        return Ended(how=type(failure).__name__)

    return saga


def add_step(
    saga: Saga[Trip],
    name: str,
    *,
    undo: UndoForm = "reply",
    failed: type[Event] | Sequence[type[Event]] = Failed,
    timeout: Any = "30s",
    undo_retry: Retry | None = None,
    **options: Any,
) -> Step[Trip, Did]:
    """A step of this name, with an undo of this form."""

    def command(state: Trip) -> Do:
        return Do(what=name)

    def item_command(state: Trip, item: str) -> Do:
        return Do(what=f"{name} {item}")

    function: Callable[..., Do] = item_command if "each" in options else command
    function.__name__ = name
    if undo == "none":
        options.setdefault("no_undo", "it leaves nothing behind")
    step: Step[Trip, Did] = saga.step(ok=Did, failed=failed, timeout=timeout, **options)(function)
    add_undo(step, undo, undo_retry)
    return step


def add_undo(step: Step[Trip, Did], form: UndoForm, retry: Retry | None = None) -> None:
    """Declare the undo of this form: what it takes, and whether it is answered."""
    name = step.name

    def of_state(state: Trip) -> Undo:
        return Undo(what=name)

    def of_reply(state: Trip, reply: Did) -> Undo:
        return Undo(what=name, reply=reply.part)

    def of_optional(state: Trip, reply: Did | None) -> Undo:
        return Undo(what=name, reply=None if reply is None else reply.part)

    def of_item(state: Trip, item: str) -> Undo:
        return Undo(what=f"{name} {item}")

    def of_item_and_reply(state: Trip, item: str, reply: Did) -> Undo:
        return Undo(what=f"{name} {item}", reply=reply.part)

    def of_item_and_optional(state: Trip, item: str, reply: Did | None) -> Undo:
        return Undo(what=f"{name} {item}", reply=None if reply is None else reply.part)

    more: dict[str, Any] = {} if retry is None else {"retry": retry}
    match form:
        case "state":
            step.undo(ok=Undid, timeout="1m", **more)(of_state)
        case "reply":
            step.undo(ok=Undid, timeout="1m", **more)(of_reply)
        case "optional":
            step.undo(ok=Undid, timeout="1m", **more)(of_optional)
        case "silent":
            step.undo(**more)(of_state)
        case "silent with reply":
            step.undo(**more)(of_reply)
        case "item" | "item and reply" | "item and optional":
            functions: dict[str, Any] = {
                "item": of_item,
                "item and reply": of_item_and_reply,
                "item and optional": of_item_and_optional,
            }
            step.undo(ok=Undid, timeout="1m", **more)(functions[form])


def add_pivot(saga: Saga[Trip], name: str, **options: Any) -> Step[Trip, Did]:
    """The point of no return, of this name."""

    def command(state: Trip) -> Do:
        return Do(what=name)

    command.__name__ = name
    options = {"failed": Failed, "timeout": "30s", **options}
    step: Step[Trip, Did] = saga.pivot(ok=Did, **options)(command)
    return step


def add_last(saga: Saga[Trip], name: str, **options: Any) -> Step[Trip, Did]:
    """A step after the pivot, of this name."""
    return add_step(saga, name, undo="none", failed=(), no_undo="", **options)


def through_a_row(definition: Definition, record: SagaRecord) -> SagaRecord:
    """The record as it comes back from its row, whose columns are JSON."""
    row = row_of(definition, record, saga_id="1", row_version=1, key=None)
    return record_of(definition, as_json(row))


def as_json(row: SagaRow) -> SagaRow:
    """The row with its columns of JSON as the database gives them back."""
    return replace(
        row,
        state=json.loads(json.dumps(row.state)),
        steps=json.loads(json.dumps(row.steps)),
        details=json.loads(json.dumps(row.details)),
    )


class Story:
    """One saga, and what has happened to it so far."""

    def __init__(
        self, saga: Saga[Trip] | Definition, begin: Message | None = None, **options: Any
    ) -> None:
        self.definition = saga if isinstance(saga, Definition) else saga.definition
        self.sent: list[str] = []
        """The labels of all commands, in order."""
        self.endings: list[Message] = []
        self.transition = self._keep(start(self.definition, begin or Booked(), **options))

    @property
    def record(self) -> SagaRecord:
        return self.transition.record

    @property
    def status(self) -> str:
        return self.record.status

    @property
    def rule(self) -> str:
        return self.transition.rule

    @property
    def new(self) -> list[str]:
        """The labels of the commands that the last happening has sent."""
        return [sending.label for sending in self.transition.sendings]

    @property
    def commands(self) -> list[Command]:
        """The commands that the last happening has sent."""
        return [sending.command for sending in self.transition.sendings]

    def unit(self, name: str) -> UnitRecord:
        return self.record.units[name]

    def ok(self, *labels: str, part: str = "a part") -> Story:
        """These commands are answered by their ok, or that of their undo."""
        for label in labels:
            self.tell(Answered(Undid() if ":undo" in label else Did(part=part), label))
        return self

    def failed(self, label: str, why: str = "full") -> Story:
        return self.tell(Answered(Failed(why=why), label))

    def by_key(self, event: Event) -> Story:
        """An event without a label has found the saga by its key."""
        return self.tell(Answered(event, None))

    def timed_out(self, label: str) -> Story:
        return self.tell(WaitedTooLong(label))

    def dead_lettered(self, label: str, reason: str = "ValueError: no") -> Story:
        return self.tell(CommandDeadLettered(label, reason))

    def operator(self, operation: Operation, step: str | None = None) -> Story:
        return self.tell(OperatorAction(operation, "because", step))

    def tell(self, happening: Happening) -> Story:
        self.transition = self._keep(advance(self.definition, self.record, happening))
        return self

    def deployed(self, saga: Saga[Trip]) -> Story:
        """From now on another version of the code is running."""
        self.definition = saga.definition
        return self

    def _keep(self, transition: Transition) -> Transition:
        self.sent += [sending.label for sending in transition.sendings]
        if transition.ending is not None:
            self.endings.append(transition.ending)
        loaded = through_a_row(self.definition, transition.record)
        assert loaded == transition.record
        return replace(transition, record=loaded)
