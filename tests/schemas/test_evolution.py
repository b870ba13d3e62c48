"""Checking the versions of a message: each incompatibility is found and shown with a witness, and
compatible versions have no findings."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from pydantic import Field, field_validator

from eventmesh.compat.pydantic_models.comparison import reader_schema, writer_schema, written
from eventmesh.contracts.evolution import check_versions
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.message import Command, Event, Message
from eventmesh.contracts.problem import Problem

TODAY = date(2026, 11, 21)


def lock(model: type[Message], revision: int = 1, **changes: Any) -> Lock:
    identity = model.__identity__
    frozen = Lock(
        name=identity.name,
        version=identity.version,
        revision=revision,
        kind=identity.kind,
        key=identity.key,
        writer=writer_schema(model),
        reader=reader_schema(model),
        samples=tuple(written(model, limit=4)),
        hash="",
        status="active",
        sunset=None,
        path=Path(f"schemas/payments/paid/v{identity.version}.json"),
    )
    return replace(frozen, **changes)


def frozen(*models: type[Message]) -> dict[int, Sequence[Lock]]:
    locks: dict[int, list[Lock]] = {}
    for model in models:
        revisions = locks.setdefault(model.__identity__.version, [])
        revisions.append(lock(model, len(revisions) + 1))
    return dict(locks)


def check(
    model: type[Message], locks: Mapping[int, Sequence[Lock]], today: date | None = TODAY
) -> list[Problem]:
    return check_versions(model, locks, today=today)


def only(problems: Sequence[Problem], rule: str) -> Problem:
    [problem] = problems
    assert problem.rule == rule, str(problem)
    assert problem.fix
    assert problem.parties == ("payments",)
    return problem


class Paid1(Event, name="payments.paid", version=1, key="order"):
    order: UUID
    cents: int


def second() -> type[Message]:
    class Paid(Event, name="payments.paid", version=2, key="order"):
        order: UUID
        amount: Decimal

    return Paid


def upcast_by(function: Callable[[dict[str, Any]], dict[str, Any]]) -> type[Message]:
    model = second()
    model.upcaster(from_version=1)(function)
    return model


def to_amount(data: dict[str, Any]) -> dict[str, Any]:
    return {"order": data["order"], "amount": str(Decimal(data["cents"]) / 100)}


# Compatible versions -----------------------------------------------------------------------------


def test_a_first_version_has_no_findings() -> None:
    assert check(Paid1, {}) == []
    assert check(Paid1, frozen(Paid1)) == []


def test_a_correct_upcaster_has_no_findings() -> None:
    assert check(upcast_by(to_amount), frozen(Paid1)) == []


def test_a_compatible_new_version_needs_no_upcaster() -> None:
    class Paid(Event, name="payments.paid", version=2, key="order"):
        order: UUID
        cents: int
        note: str = ""

    assert check(Paid, frozen(Paid1)) == []


def test_a_chain_of_upcasters_is_checked_as_a_whole() -> None:
    class Paid(Event, name="payments.paid", version=3, key="order"):
        order: UUID
        amount: Decimal
        currency: Literal["EUR", "USD"]

    Paid.upcaster(from_version=1)(to_amount)
    Paid.upcaster(from_version=2)(lambda data: data | {"currency": "EUR"})
    assert check(Paid, frozen(Paid1, second())) == []


# Breaking changes --------------------------------------------------------------------------------


def test_a_breaking_version_without_an_upcaster_is_found_with_a_witness() -> None:
    problem = only(check(second(), frozen(Paid1)), "EM036")
    assert problem.subject == "payments.paid v2"
    assert problem.severity == "error"
    assert problem.witness is not None
    assert set(problem.witness.document) == {"order", "cents"}
    assert "upcaster(from_version=1)" in problem.fix
    assert problem.place is not None
    assert problem.place.file == __file__
    assert "class Paid(" in Path(__file__).read_text().splitlines()[problem.place.line - 1]


def test_a_retired_version_needs_no_upcaster() -> None:
    assert check(second(), {1: [lock(Paid1, status="retired")]}) == []


def test_the_current_version_cannot_be_retired() -> None:
    active, retired = lock(Paid1), lock(Paid1, 2, status="retired", path=Path("v1.2.json"))
    problem = only(check(Paid1, {1: [active, retired]}), "EM033")
    assert problem.subject == "payments.paid v1"
    assert problem.place is not None
    assert problem.place.file == "v1.2.json"
    assert "schema retire payments.paid 1" in problem.fix


def test_the_fix_names_the_missing_upcaster_of_a_chain() -> None:
    class Paid(Event, name="payments.paid", version=3, key="order"):
        order: UUID
        amount: Decimal
        currency: str

    Paid.upcaster(from_version=1)(to_amount)
    problem = only(check(Paid, frozen(Paid1, second())), "EM036")
    assert problem.subject == "payments.paid v3"
    assert "upcaster(from_version=2)" in problem.fix


def test_a_skipped_version_is_found() -> None:
    class Paid3(Event, name="payments.paid", version=3, key="order"):
        order: UUID
        cents: int

    problem = only(check(Paid3, frozen(Paid1, Paid3)), "EM035")
    assert "version 2" in problem.summary


def test_a_model_older_than_the_newest_lock_is_found() -> None:
    problem = only(check(Paid1, frozen(Paid1, second())), "EM035")
    assert "never decreases" in problem.summary


def test_an_event_that_becomes_a_command_is_found() -> None:
    class Paid(Command, name="payments.paid", version=2):
        order: UUID
        cents: int

    problem = only(check(Paid, frozen(Paid1)), "EM042")
    assert "an event" in problem.summary


# Upcasters ---------------------------------------------------------------------------------------


def test_an_upcaster_that_fails_on_some_data_is_found() -> None:
    def inverse(data: dict[str, Any]) -> dict[str, Any]:
        return {"order": data["order"], "amount": str(100 // data["cents"])}

    problem = only(check(upcast_by(inverse), frozen(Paid1)), "EM037")
    assert problem.witness is not None
    assert problem.witness.document["cents"] == 0
    assert "ZeroDivisionError" in problem.witness.reason
    assert "inverse" in problem.summary
    assert problem.subject == "payments.paid v1"


def test_an_upcaster_that_returns_none_is_found() -> None:
    def without_return(data: dict[str, Any]) -> Any:
        data["amount"] = "1"

    problems = check(upcast_by(without_return), frozen(Paid1))
    assert {problem.rule for problem in problems} == {"EM037"}
    assert "NoneType" in problems[0].summary


def test_an_upcaster_that_fails_only_on_a_sample_is_found() -> None:
    def failing_on_one_amount(data: dict[str, Any]) -> dict[str, Any]:
        if data["cents"] * 7 == 7 * 48_271:
            raise ValueError("no")
        return to_amount(data)

    sample = {"order": str(UUID(int=7)), "cents": 48_271}
    problem = only(
        check(upcast_by(failing_on_one_amount), {1: [lock(Paid1, samples=(sample,))]}), "EM037"
    )
    assert problem.witness is not None
    assert problem.witness.document["cents"] == 48_271


def test_an_upcaster_that_modifies_its_argument_is_found() -> None:
    def in_place(data: dict[str, Any]) -> dict[str, Any]:
        data["amount"] = str(Decimal(data.pop("cents")) / 100)
        return data

    problem = only(check(upcast_by(in_place), frozen(Paid1)), "EM038")
    assert "in_place" in problem.summary
    assert problem.witness is not None


def test_an_upcaster_that_modifies_a_nested_value_is_found() -> None:
    class Old(Event, name="payments.paid", version=1):
        lines: list[dict[str, int]]

    class New(Event, name="payments.paid", version=2):
        lines: list[dict[str, int]]
        total: int

    def modifying_lines(data: dict[str, Any]) -> dict[str, Any]:
        for line in data["lines"]:
            line["seen"] = 1
        return data | {"total": 0}

    New.upcaster(from_version=1)(modifying_lines)
    only(check(New, frozen(Old)), "EM038")


@pytest.mark.parametrize("source", [uuid4, random.random, itertools.count().__next__])
def test_an_upcaster_with_different_results_for_the_same_data_is_found(
    source: Callable[[], Any],
) -> None:
    class Paid(Event, name="payments.paid", version=2, key="order"):
        order: UUID
        mark: str

    Paid.upcaster(from_version=1)(lambda data: {"order": data["order"], "mark": str(source())})
    problem = only(check(Paid, frozen(Paid1)), "EM038")
    assert "different results" in problem.summary


def test_an_upcaster_whose_result_the_model_rejects_is_found() -> None:
    def wrong(data: dict[str, Any]) -> dict[str, Any]:
        return {"order": data["order"], "amount": f"{data['cents']} cents"}

    problem = only(check(upcast_by(wrong), frozen(Paid1)), "EM039")
    assert "amount" in problem.summary
    assert problem.witness is not None
    assert "cents" in problem.witness.document


def test_the_result_of_an_upcaster_is_checked_with_the_validators_of_the_model() -> None:
    class Paid(Event, name="payments.paid", version=2, key="order"):
        order: UUID
        amount: Decimal

        @field_validator("amount")
        @classmethod
        def positive(cls, value: Decimal) -> Decimal:
            if value <= 0:
                raise ValueError("must be positive")
            return value

    Paid.upcaster(from_version=1)(to_amount)
    problem = only(check(Paid, frozen(Paid1)), "EM039")
    assert "must be positive" in problem.summary


def test_samples_show_what_the_validators_of_the_older_version_accept() -> None:
    class Old(Event, name="payments.paid", version=1):
        currency: str

        @field_validator("currency")
        @classmethod
        def known(cls, value: str) -> str:
            if value not in ("EUR", "USD"):
                raise ValueError("unknown")
            return value

    class New(Event, name="payments.paid", version=2):
        currency: Literal["eur", "usd"]

    New.upcaster(from_version=1)(lambda data: {"currency": data["currency"].lower()})
    samples = ({"currency": "EUR"}, {"currency": "USD"})
    problems = check(New, {1: [lock(Old, samples=samples)]})
    assert [problem.rule for problem in problems] == []


def test_the_upcaster_must_accept_every_revision_of_its_version() -> None:
    class Revised(Event, name="payments.paid", version=1, key="order"):
        order: UUID
        cents: int
        note: str | None = None

    def rejecting_notes(data: dict[str, Any]) -> dict[str, Any]:
        return to_amount(data) if data.get("note") is None else {}

    problem = only(check(upcast_by(rejecting_notes), frozen(Paid1, Revised)), "EM039")
    assert problem.witness is not None
    assert problem.witness.document["note"] is not None


# Downcasters -------------------------------------------------------------------------------------


def downcast_by(function: Callable[[dict[str, Any]], dict[str, Any]]) -> list[Problem]:
    model = upcast_by(to_amount)
    model.downcaster(to_version=1)(function)
    return check(model, frozen(Paid1))


def to_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"order": data["order"], "cents": int(Decimal(data["amount"]) * 100)}


def test_a_correct_downcaster_has_no_findings() -> None:
    assert downcast_by(to_cents) == []


def test_a_downcaster_that_keeps_a_new_field_is_found() -> None:
    problem = only(downcast_by(lambda data: data | to_cents(data)), "EM041")
    assert problem.subject == "payments.paid v1"
    assert "amount" in problem.summary


def test_a_downcaster_that_fails_is_found() -> None:
    def to_whole_amount(data: dict[str, Any]) -> dict[str, Any]:
        return {"order": data["order"], "cents": int(data["amount"])}

    problem = only(downcast_by(to_whole_amount), "EM041")
    assert "ValueError" in problem.summary
    assert problem.witness is not None
    assert "amount" in problem.witness.document


def test_a_downcaster_that_modifies_its_argument_is_found() -> None:
    def in_place(data: dict[str, Any]) -> dict[str, Any]:
        data["cents"] = int(Decimal(data.pop("amount")) * 100)
        return data

    problem = only(downcast_by(in_place), "EM041")
    assert "modifies its argument" in problem.summary


def test_a_downcaster_that_is_never_called_is_found() -> None:
    class Paid(Event, name="payments.paid", version=3, key="order"):
        order: UUID
        amount: Decimal

    Paid.upcaster(from_version=1)(to_amount)
    Paid.upcaster(from_version=2)(lambda data: data)
    Paid.downcaster(to_version=1)(to_cents)
    problem = only(check(Paid, frozen(Paid1, second())), "EM041")
    assert "downcaster(to_version=2)" in problem.fix


# Warnings ----------------------------------------------------------------------------------------


def test_a_changed_default_is_a_warning() -> None:
    class Before(Event, name="payments.paid", version=1):
        currency: str = "EUR"

    class After(Event, name="payments.paid", version=1):
        currency: str = "USD"

    problem = only(check(After, frozen(Before)), "EM040")
    assert problem.severity == "warning"
    assert '"EUR"' in problem.summary
    assert '"USD"' in problem.summary
    assert check(Before, frozen(Before)) == []


def test_a_version_past_its_sunset_is_a_warning() -> None:
    model = upcast_by(to_amount)
    locks = {1: [lock(Paid1, status="deprecated", sunset=date(2026, 11, 20))]}
    problem = only(check(model, locks), "EM043")
    assert problem.severity == "warning"
    assert "schema retire payments.paid 1" in problem.fix
    assert check(model, locks, today=date(2026, 11, 20)) == []
    assert check(model, locks, today=None) == []


def test_compatibility_that_can_be_neither_proved_nor_refuted_is_reported() -> None:
    class Old(Event, name="payments.paid", version=1):
        code: str

        @field_validator("code")
        @classmethod
        def known(cls, value: str) -> str:
            if len(value) != 12 or not value.isdigit():
                raise ValueError("not a code")
            return value

    class New(Event, name="payments.paid", version=2):
        code: Annotated[str, Field(pattern="^[0-9]{12}$")]

    problem = only(check(New, {1: [lock(Old, samples=())]}), "EM044")
    assert problem.severity == "error"
    assert "known" in problem.summary or "validator" in problem.summary


def test_the_fingerprint_of_a_finding_does_not_depend_on_its_witness() -> None:
    [one], [other] = check(second(), frozen(Paid1)), check(second(), frozen(Paid1))
    assert one.fingerprint == other.fingerprint
