"""Between a saga's record and its row: what is stored, and how rows of older code are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import to_json

from eventmesh.error_text import type_and_message
from eventmesh.errors import EventMeshError
from eventmesh.persistence.sagas import MOST_NAMES, SagaRow
from eventmesh.saga.definition import Definition
from eventmesh.saga.record import Parking, SagaRecord, Stored, UnitRecord
from eventmesh.storable import storable


class UnreadableState(EventMeshError):
    """The stored state of a saga cannot be read by this version of the code."""


class NewerVersion(EventMeshError):
    """A saga was started, or migrated, by a newer version of the code."""


class StateAsStored(RootModel[Any]):
    """The state of a saga as its row has it: enough to cancel one that cannot be read."""


def row_of(
    definition: Definition, record: SagaRecord, *, saga_id: str, row_version: int, key: str | None
) -> SagaRow:
    """The row that stores this record."""
    return SagaRow(
        id=saga_id,
        name=definition.name,
        version=definition.version,
        status=record.status,
        state=record.state.model_dump(mode="json", by_alias=False, round_trip=True),
        steps=_steps(record),
        reason=record.reason,
        row_version=row_version,
        details=_details(record),
        key=key,
        waiting_for=_waiting_for(record),
        due_at=None if record.deadline is None else datetime.fromtimestamp(record.deadline, UTC),
    )


def ended_row(row: SagaRow, record: SagaRecord) -> SagaRow:
    """The row of a saga that ends with this record, and with its state as it was stored."""
    return replace(
        row,
        status=record.status,
        steps=_steps(record),
        reason=record.reason,
        row_version=row.row_version + 1,
        details=_details(record),
        waiting_for=_waiting_for(record),
        due_at=None,
    )


def _steps(record: SagaRecord) -> dict[str, Any]:
    return {name: _unit_values(unit) for name, unit in record.units.items()}


def _details(record: SagaRecord) -> dict[str, Any]:
    return _compact(
        {
            "failure": None if record.failure is None else _failure(record.failure),
            "parking": None if record.parking is None else asdict(record.parking),
            "early": {step: _stored_values(event) for step, event in record.early.items()},
            "held": list(record.held),
            "parent": None if record.parent is None else list(record.parent),
            "correlation": record.correlation,
            "has_announced": record.has_announced,
        }
    )


def _waiting_for(record: SagaRecord) -> str:
    """What a saga is listed by: as many of its steps as there is room for."""
    standing = record.parking.unit if record.parking else None
    steps = record.waiting_steps or ([standing] if standing else [])
    joined = ",".join(steps)
    return joined if len(joined) <= MOST_NAMES else joined[: MOST_NAMES + 1].rpartition(",")[0]


def record_of(definition: Definition, row: SagaRow) -> SagaRecord:
    """The record of a row, migrated to the definition's version.

    NewerVersion; UnreadableState where the state does not validate, or a migration fails.
    """
    if row.version > definition.version:
        raise NewerVersion(
            f"the saga {row.name}/{row.id} has version {row.version}, and this code knows versions "
            f"up to {definition.version}"
        )
    return _record(row, _state(definition, row))


def unread_record_of(row: SagaRow) -> SagaRecord:
    """The record of a row with its state as it is stored: it can only be cancelled."""
    return _record(row, StateAsStored(row.state))


def _record(row: SagaRow, state: BaseModel) -> SagaRecord:
    details = row.details or {}
    # An old row that could not be read has details by now: why it is parked.
    if row.details is None or any("reply_name" in unit for unit in row.steps.values()):
        units, failure = _old_units(row)
    else:
        units = {name: UnitRecord(**_unit(each)) for name, each in row.steps.items()}
        found = details.get("failure")
        failure = None if found is None else (found["step"], _stored(found))
    parking = details.get("parking")
    return SagaRecord(
        status=row.status,  # type: ignore[arg-type]  # a check constraint allows only these
        state=state,
        units=units,
        failure=failure,
        parking=None if parking is None else Parking(**parking),
        early={step: _stored(event) for step, event in details.get("early", {}).items()},
        held=tuple(details.get("held", ())),
        parent=tuple(details["parent"]) if details.get("parent") else None,
        correlation=details.get("correlation", ""),
        has_announced=details.get("has_announced", row.status in ("completed", "undone")),
    )


def parked_row(row: SagaRow, reason: str, held: Mapping[str, Any] | None) -> SagaRow:
    """The row of a saga whose state cannot be read, parked as it is; with what has come held."""
    details, reason = dict(row.details or {}), storable(reason)
    before = (details.get("parking") or {}).get("before", row.status)
    details["parking"] = {"before": before, "reason": reason, "unit": None}
    if held is not None:
        details["held"] = [*details.get("held", ()), dict(held)]
    return SagaRow(
        id=row.id,
        name=row.name,
        version=row.version,
        status="parked",
        state=row.state,
        steps=row.steps,
        reason=reason,
        row_version=row.row_version + 1,
        details=details,
        key=row.key,
        waiting_for=row.waiting_for or "",
        due_at=row.due_at,
    )


def _state(definition: Definition, row: SagaRow) -> Any:
    state = row.state
    try:
        for version in range(row.version, definition.version):
            migrate = definition.migrations.get(version)
            if migrate is not None:
                state = migrate(dict(state))
        return definition.state.model_validate_json(to_json(state), by_name=True, by_alias=False)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'state'}: {each['msg']}"
            for each in error.errors(include_input=False, include_url=False)[:5]
        )
        raise UnreadableState(
            f"its state of version {row.version} is not valid as {definition.state.__name__}: "
            f"{problems}"
        ) from error
    except Exception as error:  # a user's function may raise anything
        raise UnreadableState(
            f"its state could not be migrated: {type_and_message(error)}"
        ) from error


def _failure(failure: tuple[str, Stored]) -> dict[str, Any]:
    step, kept = failure
    return {"step": step, **_stored_values(kept)}


def _stored_values(kept: Stored) -> dict[str, Any]:
    values: dict[str, Any] = {"name": kept.name, "data": kept.data}
    return values if kept.version is None else {**values, "version": kept.version}


def _stored(values: Mapping[str, Any]) -> Stored:
    return Stored(values["name"], values["data"], values.get("version"))


def _compact(values: dict[str, Any]) -> dict[str, Any]:
    """Without what has no value: rows are written often."""
    return {
        name: value
        for name, value in values.items()
        if not (value is None or value is False or value in ({}, [], ""))  # 0 is a value
    }


_DEFAULTS = [
    (each.name, each.default)
    for each in fields(UnitRecord)
    if each.name not in ("status", "answer")
]


def _unit_values(unit: UnitRecord) -> dict[str, Any]:
    """A unit without its defaults. Written by hand: for each message of a saga, `asdict` took as
    long as the whole transition."""
    values: dict[str, Any] = {"status": unit.status}
    for name, default in _DEFAULTS:
        value = getattr(unit, name)
        if value != default:
            values[name] = value
    if unit.answer is not None:
        values["answer"] = _stored_values(unit.answer)
    return values


def _unit(values: Mapping[str, Any]) -> dict[str, Any]:
    answer = values.get("answer")
    return {**values, "answer": None if answer is None else _stored(answer)}


def _old_units(row: SagaRow) -> tuple[dict[str, UnitRecord], tuple[str, Stored] | None]:
    """The steps of a row of before migration 0005: status, and the name and data of the reply."""
    units: dict[str, UnitRecord] = {}
    failure: tuple[str, Stored] | None = None
    for name, old in row.steps.items():
        answer = None
        if old.get("reply_name"):
            answer = Stored(old["reply_name"], old.get("reply") or {})
        undos = 1 if old["status"] in ("undo_sent", "undone") else 0
        units[name] = UnitRecord(old["status"], undo_attempt=undos, answer=answer)
        if old["status"] == "failed" and failure is None and answer is not None:
            failure = name, answer
    return units, failure
