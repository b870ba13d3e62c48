"""Each problem between services is found once, with the right rule, parties and place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from eventmesh import Command, Event
from eventmesh.compat.pydantic_models.comparison import compare_model, compare_schemas
from eventmesh.contracts.fleet import (
    DatabaseUse,
    Facts,
    Publication,
    Reading,
    check_fleet,
)
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_folder import Locks, read_locks
from eventmesh.contracts.message import Message
from eventmesh.contracts.problem import Place, Problem

HERE = Place("services/orders/contracts.py", 7)
THERE = Place("services/payments/contracts.py", 3)


class Paid(Event, name="payments.paid", version=1, key="order"):
    order: str
    amount: Decimal


class PaidV2(Event, name="payments.paid", version=2, key="order"):
    order: str
    amount: Decimal
    currency: str | None = None


class PaidInCents(Event, name="payments.paid", version=2, key="order"):
    order: str
    cents: int


class ReadsAmount(Event, name="payments.paid", version=1, key="order"):
    order: str
    amount: Decimal


class ReadsOrder(Event, name="payments.paid", version=1):
    order: str


class ReadsCents(Event, name="payments.paid", version=2):
    order: str
    cents: int


class ReadsBoth(Event, name="payments.paid", version=2):
    order: str
    cents: int


@ReadsBoth.upcaster(from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"order": data["order"], "cents": int(Decimal(data["amount"]) % 10**9 * 100)}


class Capture(Command, name="payments.capture", version=1, key="order"):
    order: str
    amount: int = Field(ge=0)


class SendsAnything(Command, name="payments.capture", version=1, key="order"):
    order: str
    amount: int


def frozen(folder: Path, *models: type[Message], retired: Sequence[int] = ()) -> Locks:
    """The lock files of these models, in order, with the versions in `retired` retired."""
    for model in models:
        freeze([model], folder)
    locks = read_locks(folder)
    for model in models:
        for version, revisions in locks.of(model.__identity__.name).items():
            if version in retired:
                locks.retire(revisions[0])
    return read_locks(folder)


def publishes(model: type[Message], service: str = "payments", writes: int = 0) -> Publication:
    return Publication(service, model, writes or model.__identity__.version, THERE)


def reads(model: type[Message], service: str = "orders", *subscriptions: str) -> Reading:
    return Reading(service, subscriptions or (f"{service}.note",), model, HERE)


def facts(locks: Locks, *declared: Publication | Reading, services: str = "") -> Facts:
    return Facts(
        services=tuple(services.split() or dict.fromkeys(each.service for each in declared)),
        frozen=locks,
        publications=tuple(each for each in declared if isinstance(each, Publication)),
        readings=tuple(each for each in declared if isinstance(each, Reading)),
    )


def check(given: Facts) -> list[Problem]:
    return check_fleet(given, compare_model, compare_schemas)


# Every subscriber can read what may still arrive


def test_a_subscriber_that_reads_the_published_version_has_no_problem(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid)
    assert check(facts(locks, publishes(Paid), reads(ReadsAmount), reads(ReadsOrder, "mail"))) == []


def test_a_subscriber_that_cannot_read_the_published_version_is_found(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid, PaidInCents, retired=[1])
    [problem] = check(facts(locks, publishes(PaidInCents), reads(ReadsAmount), reads(ReadsOrder)))
    assert (problem.rule, problem.severity) == ("EM050", "error")
    assert problem.subject == "payments.paid v2"
    assert problem.parties == ("orders", "payments")
    assert problem.place == HERE
    assert problem.witness is not None
    assert "cents" in problem.witness.document
    for word in ("orders.note", "ReadsAmount (version 1)", "Version 2", "payments/paid/v2.json"):
        assert word in problem.summary
    assert "read version 2 with ReadsAmount" in problem.fix
    assert "service.publisher(…, version=1)" in problem.fix


def test_an_older_version_that_may_still_arrive_needs_an_upcaster(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid, PaidInCents)
    [problem] = check(facts(locks, publishes(PaidInCents), reads(ReadsCents), reads(ReadsBoth)))
    assert (problem.rule, problem.subject) == ("EM050", "payments.paid v1")
    assert "@ReadsCents.upcaster(from_version=1)" in problem.fix


def test_a_retired_version_does_not_arrive_any_more(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid, PaidInCents, retired=[1])
    assert check(facts(locks, publishes(PaidInCents), reads(ReadsCents))) == []


def test_an_upcaster_that_fails_on_data_that_may_arrive_is_found(tmp_path: Path) -> None:
    class Wrong(Event, name="payments.paid", version=2):
        cents: int

    @Wrong.upcaster(from_version=1)
    def guess(data: dict[str, Any]) -> dict[str, Any]:
        return {"cents": data["centimes"]}

    locks = frozen(tmp_path, Paid, PaidInCents)
    [problem] = check(facts(locks, publishes(PaidInCents), reads(Wrong)))
    assert (problem.rule, problem.subject) == ("EM050", "payments.paid v1")
    assert "correct the upcasters of Wrong" in problem.fix


def test_a_newer_version_with_an_added_field_can_be_read(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid, PaidV2)
    assert check(facts(locks, publishes(PaidV2), reads(ReadsAmount))) == []


def test_an_old_subscriber_reads_a_downcast_version(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid, PaidInCents)
    assert check(facts(locks, publishes(PaidInCents, writes=1), reads(ReadsAmount))) == []


def test_a_downcast_version_without_a_lock_file_is_unknown(tmp_path: Path) -> None:
    given = facts(read_locks(tmp_path), publishes(PaidInCents, writes=1), reads(ReadsAmount))
    [problem] = check(given)
    assert (problem.rule, problem.subject) == ("EM057", "payments.paid v1")
    assert "has no lock file" in problem.summary


def test_a_published_model_is_checked_before_it_is_frozen(tmp_path: Path) -> None:
    [problem] = check(facts(read_locks(tmp_path), publishes(PaidInCents), reads(ReadsAmount)))
    assert (problem.rule, problem.subject) == ("EM050", "payments.paid v2")
    assert "PaidInCents of payments" in problem.summary


def test_every_revision_of_a_version_may_still_arrive(tmp_path: Path) -> None:
    class Later(Event, name="payments.paid", version=1, key="order"):
        order: str
        amount: Decimal
        note: str | None = None

    class ReadsNote(Event, name="payments.paid", version=1):
        note: str | None

    locks = frozen(tmp_path, Paid, Later)
    assert len(locks.of("payments.paid")[1]) == 2
    [problem] = check(facts(locks, publishes(Later), reads(ReadsNote)))
    assert (problem.rule, problem.subject) == ("EM050", "payments.paid v1")


def test_a_model_of_two_subscriptions_is_reported_once_with_both(tmp_path: Path) -> None:
    locks = frozen(tmp_path, PaidInCents)
    given = facts(
        locks, publishes(PaidInCents), reads(ReadsAmount, "orders", "orders.a", "orders.b")
    )
    [problem] = check(given)
    assert "orders.a, orders.b" in problem.summary


def test_each_model_of_several_subscriptions_is_checked(tmp_path: Path) -> None:
    locks = frozen(tmp_path, PaidInCents)
    given = facts(
        locks,
        publishes(PaidInCents),
        reads(ReadsAmount, "orders", "orders.a"),
        reads(ReadsOrder, "orders", "orders.b"),
    )
    [problem] = check(given)
    assert "orders.a" in problem.summary
    assert "orders.b" not in problem.summary


def test_a_service_may_subscribe_to_its_own_event(tmp_path: Path) -> None:
    given = facts(frozen(tmp_path, Paid), publishes(Paid), reads(Paid, "payments"))
    assert check(given) == []


def test_an_unknown_verdict_is_reported_as_unknown(tmp_path: Path) -> None:
    from eventmesh.compat.verdict import Unknown

    given = facts(frozen(tmp_path, Paid), publishes(Paid), reads(ReadsAmount))
    [problem] = check_fleet(given, lambda *_, **__: Unknown("too deep"), compare_schemas)
    assert (problem.rule, problem.severity) == ("EM057", "error")
    assert "too deep" in problem.summary
    assert "waive" in problem.fix


def test_an_owner_outside_the_project_may_send_every_frozen_version(tmp_path: Path) -> None:
    locks = frozen(tmp_path, Paid, PaidInCents)
    rules = {problem.rule: problem for problem in check(facts(locks, reads(ReadsAmount)))}
    assert set(rules) == {"EM050", "EM051"}
    assert rules["EM050"].subject == "payments.paid v2"
    assert rules["EM051"].severity == "warning"


# Commands


def test_a_command_that_its_handler_reads_has_no_problem(tmp_path: Path) -> None:
    given = facts(
        frozen(tmp_path, Capture), publishes(Capture, "orders"), reads(Capture, "payments")
    )
    assert check(given) == []


def test_a_sender_of_data_that_the_handler_rejects_is_found(tmp_path: Path) -> None:
    given = facts(
        frozen(tmp_path, Capture),
        publishes(SendsAnything, "orders"),
        publishes(Capture, "shop"),
        reads(Capture, "payments"),
    )
    [problem] = check(given)
    assert (problem.rule, problem.subject) == ("EM050", "payments.capture v1")
    assert problem.parties == ("payments", "orders")
    assert "SendsAnything of orders" in problem.summary
    assert problem.witness is not None
    assert problem.witness.document["amount"] < 0


def test_a_handler_that_rejects_a_frozen_version_is_reported_once_with_all_senders(
    tmp_path: Path,
) -> None:
    class Narrow(Command, name="payments.capture", version=1, key="order"):
        order: str
        amount: Literal[1]

    given = facts(
        frozen(tmp_path, Capture),
        publishes(Capture, "orders"),
        publishes(Capture, "shop"),
        reads(Narrow, "payments"),
    )
    [problem] = check(given)
    assert problem.rule == "EM050"
    assert problem.parties == ("payments", "orders", "shop")


def test_a_frozen_command_may_arrive_although_no_service_here_sends_it(tmp_path: Path) -> None:
    class New(Command, name="payments.capture", version=2, key="order"):
        order: str
        card: str

    problems = check(facts(frozen(tmp_path, Capture, New), reads(New, "payments")))
    [problem] = [each for each in problems if each.severity == "error"]
    assert (problem.rule, problem.subject) == ("EM050", "payments.capture v1")
    assert problem.parties == ("payments",)


def test_a_command_that_nobody_sends_is_a_warning(tmp_path: Path) -> None:
    [problem] = check(facts(frozen(tmp_path, Capture), reads(Capture, "payments")))
    assert (problem.rule, problem.severity, problem.subject) == (
        "EM070",
        "warning",
        "payments.capture",
    )
    assert problem.parties == ("payments",)
    assert problem.place == HERE
    assert "payments (payments.note)" in problem.summary
    assert "service.publisher(Capture)" in problem.fix


def test_a_command_sent_by_its_own_service_has_no_problem(tmp_path: Path) -> None:
    given = facts(
        frozen(tmp_path, Capture), publishes(Capture, "payments"), reads(Capture, "payments")
    )
    assert check(given) == []


def test_the_fix_for_an_unsent_command_suggests_a_similar_name(tmp_path: Path) -> None:
    class Misspelt(Command, name="payments.captures", version=1, key="order"):
        order: str
        amount: int = 0

    given = facts(frozen(tmp_path, Capture), publishes(Misspelt), reads(Capture, "payments"))
    rules = {problem.rule: problem for problem in check(given)}
    assert rules.keys() == {"EM052", "EM070"}
    assert "Did you mean payments.captures?" in rules["EM070"].fix


def test_a_command_without_a_handler_is_found(tmp_path: Path) -> None:
    given = facts(
        frozen(tmp_path, Capture),
        publishes(Capture, "orders"),
        publishes(Capture, "shop"),
        services="orders shop payments",
    )
    [problem] = check(given)
    assert (problem.rule, problem.severity) == ("EM052", "error")
    assert problem.parties == ("orders", "shop", "payments")
    assert problem.place == THERE


def test_a_command_to_an_unknown_service_is_found(tmp_path: Path) -> None:
    [problem] = check(facts(read_locks(tmp_path), publishes(Capture, "orders")))
    assert (problem.rule, problem.severity) == ("EM052", "error")
    assert "neither a service payments nor a lock file" in problem.summary


def test_a_command_to_a_service_of_another_project_is_a_warning(tmp_path: Path) -> None:
    [problem] = check(facts(frozen(tmp_path, Capture), publishes(Capture, "orders")))
    assert (problem.rule, problem.severity) == ("EM052", "warning")


def test_a_command_to_another_project_is_checked_against_its_lock_file(tmp_path: Path) -> None:
    given = facts(frozen(tmp_path, Capture), publishes(SendsAnything, "orders"))
    [warning, problem] = sorted(check(given), key=lambda each: each.severity, reverse=True)
    assert (warning.rule, problem.rule) == ("EM052", "EM050")
    assert problem.subject == "payments.capture v1"
    assert problem.parties == ("payments", "orders")
    assert problem.place == THERE
    assert problem.witness is not None
    assert problem.witness.document["amount"] < 0


def test_two_handlers_of_one_command_are_found(tmp_path: Path) -> None:
    given = facts(frozen(tmp_path, Capture), reads(Capture, "payments", "payments.a", "payments.b"))
    [problem] = check(given)
    assert problem.rule == "EM053"
    assert "payments.a and payments.b" in problem.summary


def test_handlers_of_one_command_in_two_services_are_found(tmp_path: Path) -> None:
    given = facts(frozen(tmp_path, Capture), reads(Capture, "payments"), reads(Capture, "cards"))
    [problem] = check(given)
    assert (problem.rule, problem.parties) == ("EM053", ("payments", "cards"))


# Events that nobody publishes


def test_an_event_that_its_owner_does_not_publish_is_found(tmp_path: Path) -> None:
    given = facts(frozen(tmp_path, Paid), reads(ReadsAmount), services="orders payments")
    [problem] = check(given)
    assert (problem.rule, problem.severity, problem.subject) == ("EM051", "error", "payments.paid")
    assert problem.parties == ("orders", "payments")
    assert problem.place == HERE


def test_an_unpublished_event_is_reported_once_with_all_subscribers(tmp_path: Path) -> None:
    readings = reads(ReadsAmount), reads(ReadsOrder, "mail")
    [problem] = check(facts(read_locks(tmp_path), *readings))
    assert (problem.rule, problem.parties) == ("EM051", ("orders", "mail", "payments"))
    assert "orders (orders.note) and mail (mail.note)" in problem.summary


def test_the_fix_for_an_unpublished_event_suggests_a_similar_name(tmp_path: Path) -> None:
    class Misspelt(Event, name="payment.paid", version=1):
        order: str

    [problem] = check(facts(frozen(tmp_path, Paid), publishes(Paid), reads(Misspelt)))
    assert (problem.rule, problem.severity) == ("EM051", "error")
    assert "Did you mean payments.paid?" in problem.fix


def test_the_fix_for_an_unpublished_event_never_suggests_a_command(tmp_path: Path) -> None:
    class Captured(Event, name="payment.captured", version=1):
        order: str

    given = facts(
        frozen(tmp_path, Capture),
        publishes(Capture, "orders"),
        reads(Capture, "payments"),
        reads(Captured),
        services="orders payments",
    )
    [problem] = check(given)
    assert (problem.rule, problem.subject) == ("EM051", "payment.captured")
    assert problem.fix.startswith("Correct the name")


def test_an_event_with_only_retired_versions_counts_as_unpublished(tmp_path: Path) -> None:
    [problem] = check(facts(frozen(tmp_path, Paid, retired=[1]), reads(ReadsAmount)))
    assert (problem.rule, problem.severity) == ("EM051", "error")


# Owners, kinds and keys


def test_two_services_with_the_same_name_are_the_only_problem_reported_about_them(
    tmp_path: Path,
) -> None:
    given = facts(
        frozen(tmp_path, Capture, Paid),
        reads(Capture, "payments"),
        reads(Capture, "payments"),
        publishes(Paid),
        publishes(PaidInCents),
        services="payments payments",
    )
    [problem] = check(given)
    assert (problem.rule, problem.subject) == ("EM054", "service payments")


def test_an_event_that_two_services_publish_is_found(tmp_path: Path) -> None:
    given = facts(frozen(tmp_path, Paid), publishes(Paid), publishes(Paid, "cards"))
    [problem] = check(given)
    assert (problem.rule, problem.parties) == ("EM054", ("cards", "payments"))


def test_a_message_declared_with_another_kind_is_reported_once(tmp_path: Path) -> None:
    class CaptureEvent(Event, name="payments.capture", version=1):
        order: str

    given = facts(
        frozen(tmp_path, Capture),
        publishes(Capture, "shop"),
        reads(Capture, "payments"),
        reads(CaptureEvent, "orders"),
    )
    [problem] = check(given)
    assert (problem.rule, problem.parties) == ("EM058", ("orders", "payments"))
    assert (
        "For orders it is an event, but for its owner payments it is a command" in problem.summary
    )


def test_the_kind_is_also_compared_with_lock_files(tmp_path: Path) -> None:
    class Sent(Command, name="payments.paid", version=1):
        order: str

    [problem] = check(facts(frozen(tmp_path, Paid), publishes(Sent, "orders")))
    assert problem.rule == "EM058"


def test_a_subscriber_with_another_key_is_found(tmp_path: Path) -> None:
    class ByCard(Event, name="payments.paid", version=1, key="amount"):
        amount: Decimal

    [problem] = check(facts(frozen(tmp_path, Paid), publishes(Paid), reads(ByCard)))
    assert (problem.rule, problem.place) == ("EM058", HERE)
    assert "the key 'amount'" in problem.summary
    assert "the key 'order'" in problem.summary
    assert problem.fix == "Write key='order'."


def test_a_subscriber_may_rename_or_omit_the_key(tmp_path: Path) -> None:
    class Renamed(Event, name="payments.paid", version=1, key="number"):
        number: str = Field(validation_alias="order")

    given = facts(frozen(tmp_path, Paid), publishes(Paid), reads(Renamed), reads(ReadsOrder, "x"))
    assert check(given) == []


def test_a_sender_without_the_key_is_found(tmp_path: Path) -> None:
    class Unordered(Command, name="payments.capture", version=1):
        order: str
        amount: int = Field(ge=0)

    given = facts(
        frozen(tmp_path, Capture), publishes(Unordered, "orders"), reads(Capture, "payments")
    )
    [problem] = check(given)
    assert (problem.rule, problem.parties) == ("EM058", ("orders", "payments"))


def test_a_key_is_compared_with_that_of_the_same_version(tmp_path: Path) -> None:
    class ById(Event, name="payments.paid", version=2, key="id"):
        order: str
        amount: Decimal
        id: str = ""

    given = facts(frozen(tmp_path, Paid, ById), publishes(ById), reads(ReadsAmount))
    assert check(given) == []


# Databases


def use(service: str, database: str = "postgresql://db:5432/shop", **more: Any) -> DatabaseUse:
    return DatabaseUse(service, database, **more)


def check_databases(*uses: DatabaseUse) -> list[Problem]:
    given = Facts(tuple(each.service for each in uses), read_locks(Path("nowhere")))
    return check(replace(given, databases=uses))


def test_services_with_separate_databases_have_no_problem() -> None:
    assert check_databases(use("a", "sqlite:///a.db"), use("b", "sqlite:///b.db")) == []


def test_services_with_databases_that_cannot_be_shared_have_no_problem() -> None:
    assert check_databases(use("a", ""), use("b", "")) == []


def test_an_undeclared_shared_database_is_reported_once() -> None:
    [problem] = check_databases(use("a"), use("b", place=HERE), use("c"))
    assert (problem.rule, problem.severity) == ("EM056", "error")
    assert problem.parties == ("a", "b", "c")
    assert 'Service("a", shares_database_with=["b", "c"])' in problem.fix


def test_a_shared_database_that_both_services_declare_has_no_problem() -> None:
    assert check_databases(use("a", shares_with=("b",)), use("b", shares_with=("a",))) == []


def test_a_shared_database_must_be_declared_by_both_services() -> None:
    [problem] = check_databases(use("a", shares_with=("b",)), use("b", place=HERE))
    assert (problem.rule, problem.place) == ("EM056", HERE)
    assert "a declares it, and b does not" in problem.summary
    assert problem.fix.endswith('declare it: Service("b", shares_database_with=["a"]).')


def test_the_fix_lists_only_the_missing_declarations() -> None:
    a, b = use("a", shares_with=("b",)), use("b", shares_with=("a",))
    [problem] = check_databases(a, b, use("c", shares_with=("a", "b")))
    assert problem.parties == ("a", "b", "c")
    assert problem.fix.endswith(
        'Service("a", shares_database_with=["c"]) and Service("b", shares_database_with=["c"]).'
    )


def test_a_table_that_two_services_define_in_a_shared_database_is_found() -> None:
    orders, mail = frozenset({"orders", "log"}), frozenset({"mail", "log"})
    a = use("a", tables=orders, metadata=1)
    b = use("b", tables=mail, metadata=2)
    [problem] = check_databases(a, b)
    assert "a and b both define table log" in problem.summary
    declared = replace(a, shares_with=("b",)), replace(b, shares_with=("a",))
    [problem] = check_databases(*declared)
    assert problem.rule == "EM056"
    assert "each of them defines table log" in problem.summary
    assert check_databases(declared[0], replace(declared[1], metadata=1)) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "which is the service itself"),
        ("bb", "which does not exist"),
        ("c", "uses another one"),
    ],
)
def test_a_false_declaration_of_a_shared_database_is_a_warning(name: str, reason: str) -> None:
    others = use("b", "sqlite:///b.db"), use("c", "sqlite:///c.db")
    [problem] = check_databases(use("a", shares_with=(name,), place=HERE), *others)
    assert (problem.rule, problem.severity, problem.place) == ("EM059", "warning", HERE)
    assert reason in problem.summary


def test_a_declaration_is_not_checked_where_a_database_is_not_configured() -> None:
    a = use("a", "sqlite:///a.db", shares_with=("b",), given=False)
    assert check_databases(a, use("b", "sqlite:///b.db", shares_with=("a",))) == []
