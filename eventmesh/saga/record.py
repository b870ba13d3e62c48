"""Where one saga stands, as a value, and the labels by which answers find their step.

A record is what the database keeps of a saga. Its steps are named, never numbered, so that a saga
goes on when the code around its steps is moved. Most steps have one *unit*; one with `each=` has a
unit for each item, `pick[0]`, `pick[1]` and so on, which is answered and undone by itself.

A label is the unit, `:undo` for the command that undoes it, and the number of the attempt if it is
not the first: `reserve`, `pick[2]#3`, `reserve:undo`, `reserve:undo#2`. Commands carry it, and
participants copy it to their answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from eventmesh.contracts.message import Event
from eventmesh.contracts.versions import describe_invalid_data, readable_versions, upcast
from eventmesh.errors import UnreadableMessage

Reply = TypeVar("Reply", bound=Event)

Status = Literal["running", "undoing", "parked", "completed", "undone", "cancelled"]
StepStatus = Literal[
    "sent", "done", "skipped", "failed", "timed_out", "dead_lettered", "undo_sent", "undone"
]

OPEN: tuple[Status, ...] = ("running", "undoing", "parked")
ENDED: tuple[Status, ...] = ("completed", "undone", "cancelled")

_LABEL = re.compile(
    r"(?P<step>[A-Za-z_][A-Za-z0-9_]*)(\[(?P<item>\d{1,9})\])?(?P<undo>:undo)?(#(?P<attempt>\d{1,9}))?"
)

_ITEM = re.compile(r"\[\d+\]")


@dataclass(frozen=True, slots=True)
class Label:
    """Which command an answer belongs to."""

    step: str
    item: int | None = None
    is_undo: bool = False
    attempt: int = 1

    def __str__(self) -> str:
        undo = ":undo" if self.is_undo else ""
        return self.unit + undo + ("" if self.attempt == 1 else f"#{self.attempt}")

    @property
    def unit(self) -> str:
        """The step, or the one of its items, that this is about."""
        return self.step if self.item is None else f"{self.step}[{self.item}]"


def parse_label(text: str) -> Label | None:
    """The label; None for a text that is not one."""
    found = _LABEL.fullmatch(text)
    if found is None:
        return None
    item = found["item"]
    return Label(
        step=found["step"],
        item=None if item is None else int(item),
        is_undo=found["undo"] is not None,
        attempt=int(found["attempt"] or 1),
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """An event or a failure, as its name and its data in JSON.

    `version` is that of an event, whose data is as it was published, so that upcasters can convert
    it when newer code reads it. It is None for EventMesh's own failures, and for events in rows of
    before versions were stored: see `read_stored`.
    """

    name: str
    data: Mapping[str, Any]
    version: int | None = None


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """Where a unit stands.

    `attempt` counts its commands and `undo_attempt` those that undo it; `tries` counts the commands
    since the last one that an operator asked for. `answer` is the event that answered it, and
    `answered` the attempt that it answered. Answers to undos up to `void_undos` do not count: they
    may have come before what they undo.
    """

    status: StepStatus
    attempt: int = 1
    undo_attempt: int = 0
    tries: int = 1
    answer: Stored | None = None
    answered: int = 1
    void_undos: int = 0
    deadline: float | None = None
    """When it times out, in seconds since 1970; None where it waits forever, or not at all."""
    items: int | None = None
    """For the step of units with `each=`: how many units it has."""


@dataclass(frozen=True, slots=True)
class Parking:
    """Why a saga waits for an operator.

    `before` is the status to go on with. `unit` is what stands still; None when a function of the
    saga's author failed, or its state could not be read: then whatever comes is kept in `held`.
    """

    before: Status
    reason: str
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """The progress of one saga. A step that is not in `units` has not begun."""

    status: Status
    state: BaseModel
    units: Mapping[str, UnitRecord] = field(default_factory=dict)
    failure: tuple[str, Stored] | None = None
    """The step because of which it is undone, and its failure."""
    parking: Parking | None = None
    early: Mapping[str, Stored] = field(default_factory=dict)
    """Events that came before the step that waits for them, by step."""
    held: tuple[Mapping[str, Any], ...] = ()
    """What came while the saga was parked by an error of its code, in order; see `Parking`."""
    parent: tuple[str, str] | None = None
    """The attributes sagaid and sagastep of the message that started it: its parent saga's."""
    correlation: str = ""
    has_announced: bool = False
    """Whether its end was published: a saga that a late answer opens again ends twice."""

    @property
    def ended(self) -> bool:
        """Whether it waits for nothing."""
        return self.status in ENDED

    @property
    def waiting(self) -> list[str]:
        """The labels of the units for which it waits, as people read them: without attempts."""
        if self.ended:  # a cancelled one does not wait for what it has sent
            return []
        return sorted(
            name + (":undo" if unit.status == "undo_sent" else "")
            for name, unit in self.units.items()
            if unit.items is None and unit.status in ("sent", "undo_sent")
        )

    @property
    def waiting_steps(self) -> list[str]:
        """The same by steps, without the numbers of items: `pick`, `reserve:undo`."""
        return sorted({_ITEM.sub("", label) for label in self.waiting})

    @property
    def deadline(self) -> float | None:
        """When the first of its units times out, in seconds since 1970."""
        deadlines = [unit.deadline for unit in self.units.values() if unit.deadline is not None]
        return min(deadlines, default=None)

    @property
    def reason(self) -> str | None:
        """Why it is undone or parked, for people."""
        if self.parking is not None:
            return self.parking.reason
        if self.failure is None:
            return None
        step, failure = self.failure
        return f"{step}: {failure.data.get('reason') or failure.name}"


def stored(event: Event) -> Stored:
    """An event, to be kept in a record."""
    identity = event.__identity__
    data = event.model_dump(mode="json", by_alias=True, round_trip=True)
    return Stored(identity.name, data, identity.version)


def read_stored(model: type[Reply], kept: Stored) -> Reply:
    """The event that was kept, upcast to the model's version and validated. UnreadableMessage where
    that cannot be, with a reason in one line; else what an upcaster or a validator raises.

    An older version without an upcaster is read as it is, which `schema check` has proved. Where no
    version was stored, the model's own is meant, as before there were versions; data that is not
    valid as that is of the newest older version from which it becomes valid.
    """
    own = model.__identity__.version
    if kept.version is not None:
        if kept.version > own:
            raise UnreadableMessage(
                f"it has version {kept.version}, and this code reads {model.__identity__}"
            )
        return _read_as(model, kept, kept.version)
    try:
        return _read_as(model, kept, own)
    except UnreadableMessage:
        for version in reversed(readable_versions(model)[:-1]):
            with suppress(UnreadableMessage):
                return _read_as(model, kept, version)
        raise


def _read_as(model: type[Reply], kept: Stored, version: int) -> Reply:
    data = dict(kept.data)
    if version in readable_versions(model):
        data = upcast(model, data, version)
    try:
        # Through JSON, as it arrived: a strict model accepts a date as text only from JSON.
        # By name, too: an alias may be for validation only, and old rows have names alone.
        return model.model_validate_json(to_json(data), by_name=True, by_alias=True)
    except ValidationError as error:
        raise UnreadableMessage(describe_invalid_data(model, error)) from error


def with_unit(record: SagaRecord, name: str, unit: UnitRecord) -> SagaRecord:
    """A copy with this unit's record replaced."""
    return replace(record, units={**record.units, name: unit})
